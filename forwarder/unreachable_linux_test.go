package forwarder

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// endlessErrors is a socket on which ICMP errors about an IPIP packet to 10.1.0.1 come without a pause.
type endlessErrors struct{ net.PacketConn }

func (endlessErrors) ReadFrom(b []byte) (int, net.Addr, error) {
	return copy(b, "\x03\x02\x00\x00\x00\x00\x00\x00"+
		"\x45\x00\x00\x3c\x00\x00\x40\x00\x3f\x04\x00\x00\xc0\x00\x02\x01\x0a\x01\x00\x01"+
		"\x45\x00\x00\x28\x00\x00\x40\x00"), nil, nil
}

// A flood of ICMP errors is looked at a thousand times a second.
func TestFloodOfUnreachable(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(IPIP, 1))
	n := &Node{Engine: r.engine}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		n.readRefused(ctx, endlessErrors{}, false)
	})
	if n := r.engine.Stats().Services[0].Backends[0].Unreachable; n < 9_800 || n > 10_200 {
		t.Errorf("%d looked at in ten seconds", n)
	}
}
