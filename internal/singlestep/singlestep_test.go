//go:build linux && amd64 && !race

package singlestep

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary the traced process: its value is how many calls it has counted.
const childEnv = "SLUICE_SINGLESTEP_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		Serve(child)
	}
	os.Exit(m.Run())
}

var sink, terms = 0, 100

func child(t *Tracee) error {
	if err := t.Attach(); err != nil {
		return err
	}
	for range 3 {
		t.Count(work)
	}
	return nil
}

func work() {
	outer(terms)
	outer(2 * terms)
	sink += int(time.Since(time.Unix(0, 0)))
}

//go:noinline
func outer(n int) {
	for i := range n {
		sink += leaf(i)
	}
}

//go:noinline
func leaf(i int) int { return square(i) + 1 }

func square(i int) int { return i * i }

func TestRun(t *testing.T) {
	t.Setenv(childEnv, "1")
	var totals []uint64
	for range 2 {
		start := time.Now()
		p, err := Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		if p.Calls != 3 {
			t.Fatalf("%d calls counted, want 3", p.Calls)
		}
		entered, inlined, clock := uint64(0), uint64(0), uint64(0)
		sum, system := uint64(0), uint64(0)
		for _, in := range p.Instructions() {
			if sum += in.Count; in.Stack[0].Function == System {
				system += in.Count // it reads the clock, and what it does depends on the time
			}
			var names []string
			for _, f := range in.Stack {
				names = append(names, f.Function[strings.LastIndexByte(f.Function, '.')+1:])
			}
			switch way := strings.Join(names, " "); {
			case strings.HasPrefix(way, "leaf outer work"):
				if in.PC == in.Stack[0].Entry {
					entered += in.Count
				}
			case strings.HasPrefix(way, "square leaf outer work"):
				inlined += in.Count
				if in.PC == in.Stack[0].Entry {
					entered += in.Count
				}
			case strings.HasSuffix(way, "Since work"):
				clock += in.Count
			}
		}
		if want := uint64(3 * 3 * terms); entered != want {
			t.Errorf("leaf was entered %d times, want %d", entered, want)
		}
		if inlined == 0 || clock == 0 {
			t.Errorf("%d instructions of what is inlined in leaf, and %d of time.Since, want some", inlined, clock)
		}
		if sum != p.Total() {
			t.Errorf("instructions sum up to %d, Total is %d", sum, p.Total())
		}
		t.Logf("%d instructions, %.1f µs each with the start", p.Total(), float64(took.Microseconds())/float64(p.Total()))
		totals = append(totals, sum-system)
	}
	if totals[0] != totals[1] {
		t.Errorf("two runs executed %d", totals)
	}
}

// A child that fails says why.
func TestRunFails(t *testing.T) {
	if _, err := Run(context.Background(), "-test.run=^$", "-no-such-flag"); err == nil || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("error %v, want one that tells what the child said", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	t.Setenv(childEnv, "1")
	if _, err := Run(ctx); err == nil {
		t.Error("no error though the context is done")
	}
}
