package forwarder

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluice-lb/sluice/maglev"
)

// Packets without a word fare in a batch as they do one by one, whether they are decided together or each takes more: so do services that
// choose by what was decided before, backends that take no new flows, and flows of which a batch has several packets.
func TestDecideTogether(t *testing.T) {
	services := make([]ServiceSpec, 5)
	for k := range services {
		s := web(IPIP, 7)
		s.Name, s.Ports = string(rune('a'+k)), []PortRange{{uint16(80 + k), uint16(80 + k)}}
		if k > 0 {
			s.Backends[2].Admit, s.Backends[3].Admit = maglev.MakeAdmit(maglev.Draining, 0), maglev.MakeAdmit(maglev.Up, maglev.All/2)
		}
		services[k] = s
	}
	services[1].Scheduler = maglev.P2C
	services[2].Protocol, services[2].Ports = protoUDP, []PortRange{{82, 82}}
	services[3].NoTable = true
	services[4].Scheduler = maglev.Source
	together, alone := newTestRig(t, 4000), newTestRig(t, 4000)
	var readers [2]*SignalReader
	for k, r := range []*testRig{together, alone} {
		r.apply(services...)
		readers[k] = r.engine.NewSignalReader()
		defer readers[k].Close()
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 20 {
		var frames [][]byte
		for i := range 100 {
			f := client(round*100+i, "S")
			k := rng.IntN(len(services))
			f.dport = uint16(80 + k)
			f.udp = k == 2
			if rng.IntN(10) == 0 {
				f.flags = []string{"A", "FA", "R"}[rng.IntN(3)]
			}
			switch rng.IntN(10) {
			case 0:
				f.src = vip4
			case 1:
				f.src = vip4.Prev()
			}
			if (k == 0 || k == 3) && len(f.flags) == 1 && f.flags != "R" { // what else leaves or changes a word is not seen in the same batch
				for range rng.IntN(4) {
					frames = append(frames, f.frame(t))
					f.flags = []string{"S", "A"}[rng.IntN(2)]
				}
			}
			frames = append(frames, f.frame(t))
		}
		frames = frames[:min(len(frames), 192)]
		sent := together.pass(frames...)
		var want [][]byte
		for _, f := range frames {
			want = append(want, alone.pass(f)...)
		}
		slices.SortFunc(sent, bytes.Compare)
		slices.SortFunc(want, bytes.Compare)
		if !slices.EqualFunc(sent, want, bytes.Equal) {
			t.Fatalf("round %d: %d frames were sent, %d one by one, and not the same ones", round, len(sent), len(want))
		}
	}
	if !slices.Equal(sortedWords(together.words), sortedWords(alone.words)) {
		t.Error("the flow table has other words")
	}
	a, b := together.worker.count.readTotals(), alone.worker.count.readTotals()
	if a.newFlows != b.newFlows || a.newFlows == 0 || a.reasons != b.reasons {
		t.Errorf("%d new flows, %d one by one; dropped %v and %v", a.newFlows, b.newFlows, a.reasons, b.reasons)
	}
	first, sources := news(readers[0])
	second, want := news(readers[1])
	for name, s := range second {
		if first[name] != s || sources[name] != want[name] {
			t.Errorf("%s: %+v from %d sources, one by one %+v from %d", name, first[name], sources[name], s, want[name])
		}
	}
	if len(first) != len(second) || len(first) == 0 {
		t.Errorf("signals of %d backends, %d one by one", len(first), len(second))
	}
}

func sortedWords(words []uint64) []uint64 {
	words = slices.Clone(words)
	slices.Sort(words)
	return words
}
