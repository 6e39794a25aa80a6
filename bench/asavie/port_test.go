//go:build linux

package asavie

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/testenv"
)

// TestForwards sends packets through a worker on both kinds of rings: all of them arrive at the other end, once and in the
// form that the mode gives them. More go through than there are frames, and never more at a time than a ring holds.
func TestForwards(t *testing.T) {
	testenv.RequireRoot(t)
	const burst, bursts = 250, 10
	r, err := newRig(1000, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	for _, w := range r.ways {
		for mode, protocol := range map[forwarder.Mode]uint8{forwarder.L2: packet.ProtoTCP, forwarder.IPIP: 4} {
			if err := w.lane.apply(mode, w.own, w.peer, mtu); err != nil {
				t.Fatal(err)
			}
			for range bursts {
				want := forwarded(t, w, protocol) + burst
				g, err := bench.StartGenerator(r.peer, w.link, w.traffic(100, bench.Traffic{Count: burst}))
				if err != nil {
					t.Fatal(err)
				}
				if err := g.Wait(); err != nil {
					t.Fatal(err)
				}
				got := uint64(0)
				for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline) && got < want; time.Sleep(time.Millisecond) {
					got = forwarded(t, w, protocol)
				}
				if got != want {
					t.Fatalf("%s, %v: %d of %d packets arrived as protocol %d", w.system, mode, got+burst-want, burst, protocol)
				}
			}
		}
		if w.lane.calls() == 0 {
			t.Errorf("%s: no system call was counted", w.system)
		}
	}
}

// forwarded is how many packets of an IP protocol have come to the sink.
func forwarded(t *testing.T, w *way, protocol uint8) (n uint64) {
	t.Helper()
	all, err := w.sink.Destinations()
	if err != nil {
		t.Fatal(err)
	}
	for d, tally := range all {
		if d.Protocol == protocol {
			n += tally.Packets
		}
	}
	return n
}

// A comparison has a row for each of what it compares, with values unless the machine was too busy, and undoes what it did to the
// process.
func TestCompare(t *testing.T) {
	testenv.RequireRoot(t)
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	table, err := Compare(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(sizes) * len(modes); len(table.Rows) != want {
		t.Errorf("%d rows, expected %d", len(table.Rows), want)
	}
	for i := range table.Rows {
		row := &table.Rows[i]
		if row.Missing == "" && (len(row.Rounds) == 0 || row.Rounds[0] <= 0 || row.Extra["system_calls_per_packet"] <= 0) {
			t.Errorf("row %+v", row)
		}
		if row.Reference != "" && table.Find(row.Reference) == nil {
			t.Errorf("%s is compared with %s, which is not there", row.Key(), row.Reference)
		}
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
		t.Errorf("CPUs of the process: %v before, %v after, %v", before, after, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Compare(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
