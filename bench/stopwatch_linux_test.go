package bench

import (
	"math/bits"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

func TestTimesOfBuckets(t *testing.T) {
	for took := time.Duration(1); took < 20*time.Second; took += took/9 + 1 {
		got := timeOf(bucketOf(took))
		if off := (got - took).Abs(); off > took>>partBits {
			t.Fatalf("%v is read back as %v", took, got)
		}
	}
}

// Stamped packets arrive with a time, all of them, be they of one size or of a mix; and what a smooth generator sends is spread
// evenly.
func TestStamped(t *testing.T) {
	for name, mix := range map[string][]int{"one size": nil, "mix": IMIX} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t)
			if err := w.sink.Stop(); err != nil {
				t.Fatal(err)
			}
			s, err := StartStopwatch(w.right, "eth0")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Stop()
			tr := traffic(spoof4, target4, UDP, 0)
			tr.Count, tr.Rate, tr.Smooth, tr.Stamp, tr.Mix = 20_000, 100_000, true, true, mix
			start := time.Now()
			g, err := StartGenerator(w.left, "eth0", tr)
			if err != nil {
				t.Fatal(err)
			}
			for ended := false; !ended; time.Sleep(time.Millisecond) {
				select {
				case <-g.done:
					ended = true
				default:
				}
				if sent, most := g.Sent(), uint64(time.Since(start).Seconds()*float64(tr.Rate))+1; sent > most {
					t.Fatalf("sent %d when %d were due", sent, most)
				}
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			if g.Sent() != tr.Count {
				t.Errorf("sent %d of %d", g.Sent(), tr.Count)
			}
			w.balance(t, tr.Count, func() (frames uint64) {
				last := time.Duration(-1)
				err := s.Times(func(took time.Duration, n uint64) {
					if took <= last || took > 10*time.Second {
						t.Errorf("%v after %v", took, last)
					}
					last, frames = took, frames+n
				})
				if err != nil {
					t.Fatal(err)
				}
				return frames
			})
		})
	}
}

// What is under an outer header is found; what is no stamp passes.
func TestStopwatchVerdicts(t *testing.T) {
	testenv.RequireRoot(t)
	s := &Stopwatch{}
	if err := loadStopwatchObjects(&s.objects, nil); err != nil {
		t.Fatal(err)
	}
	defer s.objects.Close()
	tr := traffic(spoof4, target4, UDP, 0)
	if err := tr.complete(); err != nil {
		t.Fatal(err)
	}
	plain, _, _ := tr.template(tr.Size)
	stamped := append([]byte(nil), plain...)
	stamp := stamped[etherLen+ip4Len+8:][:stampLen]
	stamp[0] = 1 // a nanosecond after the machine started
	for i, b := range stamp[:8] {
		stamp[8+i] = ^b
	}
	outer := append([]byte(nil), stamped[:etherLen+ip4Len]...)
	outer[etherLen+9] = 4
	outer = append(outer, stamped[etherLen:]...)
	const drop, pass = 1, 2
	for name, c := range map[string]struct {
		frame   []byte
		verdict uint32
	}{
		"no stamp": {plain, pass}, "stamped": {stamped, drop}, "in an outer header": {outer, drop}, "cut": {stamped[:50], pass},
	} {
		if verdict, _, err := s.objects.Stopwatch.Test(c.frame); err != nil || verdict != c.verdict {
			t.Errorf("%s: verdict %d, want %d; %v", name, verdict, c.verdict, err)
		}
	}
}

// bucketOf is what stopwatch.c makes of a time.
func bucketOf(t time.Duration) uint32 {
	const parts = 1 << partBits
	if t < parts {
		return uint32(t)
	}
	shift := bits.Len64(uint64(t)) - 1 - partBits
	return uint32(shift+1)*parts + uint32(t>>shift)&(parts-1)
}
