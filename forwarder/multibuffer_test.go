package forwarder

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

// jumboRig is a test rig whose packets may come in several frames.
func jumboRig(t *testing.T) *testRig {
	r := newTestRig(t, 1000)
	nic, err := xsk.NewMemoryNIC(xsk.Options{Audit: true, MultiBuffer: true}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.worker.giveUp()
		if at, err := nic.Umem().Audit(); err != nil || at.Worker != 0 {
			t.Errorf("frames: %+v, %v", at, err)
		}
		nic.Umem().Close()
	})
	r.nic = nic
	r.worker.Attach(WorkerIO{Memory: nic.Umem().Memory(), MultiBuffer: true, Wait: nic.Umem().Wait, Queues: []Queue{{Port: nic.Sockets()[0]}}})
	return r
}

// Packets of up to 9,000 bytes pass whole, in each mode, among small ones; every frame of them is accounted for.
func TestMultiBuffer(t *testing.T) {
	for _, mode := range []Mode{L2, IPIP, GUE, NAT} {
		t.Run(mode.String(), func(t *testing.T) {
			r := jumboRig(t)
			r.apply(web(mode, 3))
			r.changeHops(func(h *Hop) { h.MTU = 9100 })
			var in [][]byte
			for i := range 300 {
				f := client(i, "A")
				f.payload = []int{10, 3700, 3800, 8000, 8900, 100}[i%6]
				frame := f.frame(t)
				for k := 54; k < len(frame); k++ {
					frame[k] = byte(k * i)
				}
				in = append(in, frame)
			}
			sent := r.pass(in...)
			if len(sent) != len(in) {
				t.Fatalf("%d of %d packets sent: %+v", len(sent), len(in), r.worker.count.readTotals())
			}
			for i, f := range sent {
				if payload := in[i][54:]; !bytes.HasSuffix(f, payload) {
					t.Fatalf("packet %d: its %d bytes of data are not what was sent", i, len(payload))
				}
			}
			c, s := r.worker.count.readTotals(), r.nic.Sockets()[0].Counts()
			if s.Sent != c.forwarded+c.continued || c.continued == 0 {
				t.Errorf("%d frames sent; %d packets forwarded, %d further frames", s.Sent, c.forwarded, c.continued)
			}
		})
	}
}

// Large packets that are not forwarded give all their frames back, whether they are answered or not, and when the worker
// has a fault.
func TestMultiBufferDrops(t *testing.T) {
	large := client(1, "A")
	large.payload = 8500
	for name, c := range map[string]struct {
		setup func(r *testRig)
		want  packet.Reason
		sent  int
	}{
		"no service":        {func(r *testRig) { r.apply(dns(2)) }, packet.NoService, 0},
		"too big, answered": {func(r *testRig) { r.apply(web(IPIP, 2)) }, packet.TooBig, 0}, // may be fragmented, but is in several frames
		"no backend, answered": {func(r *testRig) {
			s := web(L2, 1)
			s.Reject = true
			r.apply(s)
			r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.Down, 0))
		}, packet.NoBackend, 1},
		"a sum that is not made": {func(r *testRig) {
			r.apply(web(GUE, 2))
			r.engine.tunnel.Checksum = true
			r.changeHops(func(h *Hop) { h.MTU = 9100 })
		}, packet.TooBig, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := jumboRig(t)
			c.setup(r)
			sent := r.pass(large.frame(t), large.frame(t))
			if len(sent) != 2*c.sent || r.reason(c.want) != 2 {
				t.Errorf("%d sent; %+v", len(sent), r.worker.count.readTotals())
			}
		})
	}
	t.Run("fault", func(t *testing.T) {
		r := jumboRig(t)
		r.apply(web(L2, 2))
		r.nic.DeliverBatch(0, [][]byte{large.frame(t), client(2, "A").frame(t)})
		r.worker.table, r.engine.table = nil, nil
		var failed any
		func() {
			defer func() { failed = recover() }()
			r.worker.turn()
		}()
		if failed == nil {
			t.Fatal("no fault")
		}
		r.worker.recovered(fmt.Sprint(failed))
		if r.worker.count.publish(r.now.Load()); r.reason(packet.Internal) != 2 {
			t.Errorf("%+v", r.worker.count.readTotals())
		}
		r.engine.table, _ = conntrack.New(r.words)
		r.worker.table = r.engine.table
		r.advance(time.Second)
		if sent := r.pass(client(2, "A").frame(t)); len(sent) != 1 {
			t.Error("it does not go on")
		}
	})
}
