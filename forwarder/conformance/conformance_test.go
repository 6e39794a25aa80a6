package conformance

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/maglev"
	"github.com/sluice-lb/sluice/testenv"
)

// replayer is one of the ways to replay the cases of a file, one after the other.
type replayer interface {
	// replay lets the frames of a case come in, and returns when all of them have been treated.
	replay(t *testing.T, c *testCase) result
}

// result is what became of the frames of a case.
type result struct {
	out      map[string][][]byte // frames that went out, by interface
	books    books               // what was counted
	toKernel bool                // the XDP program left the frames to the kernel
}

// books are the sums of the workers' counters.
type books struct {
	received, forwarded, answered, generated, held uint64
	reasons                                        map[packet.Reason]uint64
}

func readBooks(t *testing.T, workers []control.Worker) books {
	t.Helper()
	b := books{reasons: map[packet.Reason]uint64{}}
	for _, w := range workers {
		b.received += w.Received
		b.forwarded += w.Forwarded
		b.answered += w.Answered
		b.generated += w.Generated
		b.held += w.Held
		for name, n := range w.Dropped {
			var r packet.Reason
			if err := r.UnmarshalText([]byte(name)); err != nil {
				t.Fatal(err)
			}
			b.reasons[r] += n
		}
	}
	return b
}

// minus returns what was counted since before.
func (b books) minus(before books) books {
	d := books{b.received - before.received, b.forwarded - before.forwarded, b.answered - before.answered,
		b.generated - before.generated, b.held, map[packet.Reason]uint64{}}
	for r, n := range b.reasons {
		if n -= before.reasons[r]; n > 0 {
			d.reasons[r] = n
		}
	}
	return d
}

func (b books) dropped() (n uint64) {
	for _, x := range b.reasons {
		n += x
	}
	return n
}

// balanced says whether every frame is accounted for.
func (b books) balanced() bool { return b.received == b.forwarded+b.answered+b.held+b.dropped() }

// TestConformance replays all cases in testdata in three ways, the third without the fast path and with it. Over veth it takes root, and is left out under -short.
func TestConformance(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	if !testing.Short() {
		testenv.RequireRoot(t)
	}
	cases := 0
	for _, path := range paths {
		f := readFile(t, path)
		cases += len(f.cases)
		t.Run(f.name, func(t *testing.T) {
			ways := map[string]replayer{byEngine: newEngineRig(t, f), byMemory: newMemoryRig(t, f)}
			if !testing.Short() {
				ways[byVeth], ways[byFast] = newVethRig(t, f, "off"), newVethRig(t, f, "on")
			}
			for _, c := range f.cases {
				t.Run(c.name, func(t *testing.T) {
					for _, way := range []string{byEngine, byMemory, byVeth, byFast} {
						known := knownAs(way)
						if r := ways[way]; r != nil && slices.Contains(c.ways, known) && (known == byVeth || c.reachesWorker()) {
							t.Run(way, func(t *testing.T) { f.check(t, c, way, r.replay(t, c)) })
						}
					}
				})
			}
		})
	}
	if cases < 250 {
		t.Errorf("%d cases; there were 250", cases)
	}
}

// knownAs is the way that cases know a way as.
func knownAs(way string) string {
	if way == byFast {
		return byVeth
	}
	return way
}

// reachesWorker says whether the XDP program gives the frames of a case to a worker.
func (c *testCase) reachesWorker() bool {
	return !c.kernel && c.reason[packet.Loop] == 0 && c.reason[packet.NoSocket] == 0
}

// check compares what became of a case's frames with what was to become of them.
func (f *file) check(t *testing.T, c *testCase, way string, r result) {
	t.Helper()
	where := fmt.Sprintf("testdata/%s.txt:%d", f.name, c.line)
	if kernel := c.kernel || knownAs(way) == byVeth && c.vethKernel; kernel != r.toKernel {
		t.Fatalf("%s: left to the kernel: %v, want %v", where, r.toKernel, kernel)
	} else if kernel {
		return
	}
	want := map[string][]event{}
	for _, e := range c.out {
		for range e.times {
			want[e.iface] = append(want[e.iface], e)
		}
	}
	for _, iface := range slices.Sorted(maps.Keys(f.mtus)) {
		got := r.out[iface]
		if way == byFast {
			got = f.inOrder(want[iface], got)
		}
		for i := range max(len(got), len(want[iface])) {
			var problem string
			switch {
			case i >= len(got):
				problem = fmt.Sprintf("nothing went out\n want %s", want[iface][i].text)
			case i >= len(want[iface]):
				problem = fmt.Sprintf("one too many\n  got %s", f.format(got[i], iface))
			default:
				problem = f.compare(want[iface][i].toSame(got[0]), got[i])
			}
			if problem != "" {
				t.Errorf("%s: frame %d on %s: %s", where, i+1, iface, problem)
			}
		}
	}
	if !maps.Equal(r.books.reasons, c.reason) {
		t.Errorf("%s: reasons %v, want %v", where, r.books.reasons, c.reason)
	}
	if !r.books.balanced() {
		t.Errorf("%s: the books do not balance: %+v", where, r.books)
	}
}

// inOrder returns frames in the order in which they are expected, what is not expected at the end: those of the fast path overtake others,
// which go by a worker.
func (f *file) inOrder(want []event, got [][]byte) (out [][]byte) {
	left := slices.Clone(got)
	for _, e := range want {
		i := slices.IndexFunc(left, func(frame []byte) bool { return f.compare(e.toSame(got[0]), frame) == "" })
		if i >= 0 {
			out = append(out, left[i])
			left = slices.Delete(left, i, i+1)
		}
	}
	return append(out, left...)
}

// toSame puts the MAC that the first frame went to in the place of the word for it.
func (e event) toSame(first []byte) event {
	if e.ls[0].keys["dst"] == same {
		e.ls = slices.Clone(e.ls)
		e.ls[0].keys = maps.Clone(e.ls[0].keys)
		e.ls[0].keys["dst"] = net.HardwareAddr(first[:6]).String()
	}
	return e
}

// compare says how a frame differs from what was expected, and checks it by itself.
func (f *file) compare(e event, got []byte) string {
	ls := e.ls
	want := e.raw
	if want == nil {
		seen, err := parseLayers(wildText(f.format(got, e.iface)))
		if err != nil {
			seen = nil
		}
		ls = settle(e.ls, seen)
		if !hasWildcard(ls) {
			if want, err = build(ls, f.names, e.iface); err != nil {
				return err.Error()
			}
		}
	}
	switch {
	case want == nil:
		return fmt.Sprintf("\n want %s\n  got %s", e.text, f.format(got, e.iface))
	case !bytes.Equal(got, want):
		a, b := f.format(want, e.iface), f.format(got, e.iface)
		if a == b {
			a, b = a+fmt.Sprintf("\n      %x", want), b+fmt.Sprintf("\n      %x", got)
		}
		return fmt.Sprintf("\n want %s\n  got %s", a, b)
	}
	if err := verify(got, f.guePort(), oddities(ls)); err != nil {
		return fmt.Sprintf("%v\n  got %s", err, f.format(got, e.iface))
	}
	return ""
}

// wildText is the text of a frame without the words that only people read.
func wildText(text string) string { return strings.ReplaceAll(text, " (wrong)", "") }

func (f *file) guePort() uint16 { return f.config.Tunnel.GUEPort }

func (f *file) format(frame []byte, iface string) string {
	return format(frame, f.names, iface, f.guePort())
}

// admission says what health has found out about a backend.
func (f *file) admission(service, backend string) maglev.Admit {
	if f.down[service+"/"+backend] {
		return maglev.MakeAdmit(maglev.Down, 0)
	}
	return maglev.MakeAdmit(maglev.Up, maglev.All)
}

// newEngine makes an engine that forwards what the file's config says.
func (f *file) newEngine(t *testing.T, clock func() int64) *forwarder.Engine {
	t.Helper()
	keys, err := forwarder.DeriveKeys([]byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	e, err := forwarder.NewEngine(forwarder.EngineConfig{Keys: keys, Words: make([]uint64, 1<<12), Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Apply(control.Spec(f.config, f.admission)); err != nil {
		t.Fatal(err)
	}
	hops := map[netip.Addr]forwarder.Hop{}
	for _, a := range e.Addresses() {
		hops[a] = hop(a, f)
	}
	e.SetHops(hops)
	routes, ways := routes(f)
	e.SetRoutes(routes, ways)
	return e
}

// seed is the group's secret.
const seed = "a seed for the conformance suite"

// engineBooks reads the counters of an engine's workers.
func engineBooks(t *testing.T, e *forwarder.Engine) books {
	t.Helper()
	return readBooks(t, control.NewTraffic(e.Stats()).Workers)
}
