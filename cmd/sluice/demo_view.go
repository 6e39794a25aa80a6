//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

// view shows a demo as it runs: redrawn in colour on a terminal, else as plain lines. say may be called from any goroutine.
type view struct {
	out      io.Writer
	terminal bool
	start    time.Time

	mu     sync.Mutex
	height int // lines of the live part, which the next drawing overwrites
	last   reading
	ending chan struct{}
	ended  chan struct{}
}

// reading is what rates are computed from.
type reading struct {
	at      time.Time
	packets uint64
	done    counted
}

func newView(out io.Writer) *view {
	return &view{out: out, terminal: isTerminal(out), start: time.Now()}
}

// say adds a line to the story.
func (v *view) say(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.erase()
	fmt.Fprintf(v.out, "%s  %s\n", v.dim(fmt.Sprintf("%5.1f s", time.Since(v.start).Seconds())), v.bold(fmt.Sprintf(format, args...)))
}

// watch shows the live part from now on: twice a second on a terminal, else every two seconds.
func (v *view) watch(d *demo) {
	v.ending, v.ended = make(chan struct{}), make(chan struct{})
	every := 2 * time.Second
	if v.terminal {
		every = 500 * time.Millisecond
	}
	go func() {
		defer close(v.ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-v.ending:
				return
			case <-tick.C:
				v.draw(d)
			}
		}
	}()
}

// stop ends the live part and leaves its last state standing.
func (v *view) stop() {
	close(v.ending)
	<-v.ended
	v.mu.Lock()
	defer v.mu.Unlock()
	v.height = 0
}

// erase takes the live part off the screen.
func (v *view) erase() {
	if v.height > 0 {
		fmt.Fprintf(v.out, "\x1b[%dA\x1b[J", v.height)
		v.height = 0
	}
}

// draw shows the present state.
func (v *view) draw(d *demo) {
	st, err := d.node.status()
	if err != nil {
		return
	}
	now := reading{at: time.Now(), done: d.load.now()}
	for _, w := range st.Traffic.Workers {
		now.packets += w.Received
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	last := v.last
	v.last = now
	if last.at.IsZero() {
		return
	}
	seconds := now.at.Sub(last.at).Seconds()
	p50, p99 := d.load.latencies()
	requests, failed := now.done.requests-last.done.requests, now.done.failed-last.done.failed

	var rows []backendRow
	long := d.load.longAt()
	for _, name := range d.backends() {
		row := backendRow{name: name, requests: now.done.by[name] - last.done.by[name], long: long[name]}
		row.share = float64(row.requests) / float64(max(1, requests-failed))
		row.health, row.evidence = healthOf(st, name)
		rows = append(rows, row)
	}
	head := fmt.Sprintf("%5.0f requests/s  %6.0f packets/s  latency p50 %.1f ms, p99 %.1f ms  %d failed",
		float64(requests)/seconds, float64(now.packets-last.packets)/seconds, ms(p50), ms(p99), failed)

	if !v.terminal {
		var parts []string
		for _, r := range rows {
			parts = append(parts, fmt.Sprintf("%s %s %.0f%%", r.name, r.health, 100*r.share))
		}
		fmt.Fprintf(v.out, "%5.1f s  %s  |  %s\n", time.Since(v.start).Seconds(), strings.TrimSpace(head), strings.Join(parts, ", "))
		return
	}
	v.erase()
	var b strings.Builder
	fmt.Fprintf(&b, "\n  %s\n\n", head)
	fmt.Fprintf(&b, "  %s\n", v.dim(fmt.Sprintf("%-8s %-8s %-32s %8s %12s", "BACKEND", "HEALTH", "SHARE", "REQ/S", "LONG-LIVED")))
	for _, r := range rows {
		health := v.green(fmt.Sprintf("%-8s", r.health))
		bar := fmt.Sprintf("%-25s %5.1f%%", strings.Repeat("█", int(25*r.share+0.5)), 100*r.share)
		if r.health != control.StateUp {
			health = v.red(fmt.Sprintf("%-8s", r.health))
			bar = fmt.Sprintf("%-32.32s", r.evidence)
		}
		fmt.Fprintf(&b, "  %-8s %s %s %8.0f %12d\n", r.name, health, bar, float64(r.requests)/seconds, r.long)
	}
	b.WriteByte('\n')
	text := b.String()
	v.height = strings.Count(text, "\n")
	_, _ = io.WriteString(v.out, text)
}

// backendRow is one line of the live part.
type backendRow struct {
	name     string
	health   control.State
	evidence string
	requests int
	share    float64
	long     int
}

// healthOf returns what the daemon says about a backend, in the first service that has it.
func healthOf(st control.Status, backend string) (control.State, string) {
	for _, s := range st.Traffic.Services {
		for _, b := range s.Backends {
			if b.Name == backend {
				return b.Health.State, b.Health.Evidence
			}
		}
	}
	return "absent", "not configured yet"
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (v *view) bold(s string) string  { return v.paint("1", s) }
func (v *view) dim(s string) string   { return v.paint("2", s) }
func (v *view) green(s string) string { return v.paint("32", s) }
func (v *view) red(s string) string   { return v.paint("31", s) }

// paint colours only for people who see colours and have not asked for none (no-color.org).
func (v *view) paint(code, s string) string {
	if !v.terminal || os.Getenv("NO_COLOR") != "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}
