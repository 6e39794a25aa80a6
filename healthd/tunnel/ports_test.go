//go:build linux

package tunnel

import (
	"errors"
	"syscall"
	"testing"
	"time"
)

func TestPorts(t *testing.T) {
	p := newPorts()
	now := time.Unix(1, 0)
	flows := map[uint16]*flow{}
	for range portCount {
		f := new(flow)
		port, err := p.take(now, f)
		if err != nil || port < firstPort || flows[port] != nil {
			t.Fatalf("took %d, %v; %d are taken", port, err, len(flows))
		}
		flows[port] = f
	}
	if _, err := p.take(now, nil); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("none left: %v, want EADDRNOTAVAIL", err)
	}
	for port, f := range flows {
		if p.flow(port) != f {
			t.Fatalf("another flow at %d", port)
		}
	}
	if p.flow(firstPort-1) != nil {
		t.Error("a flow at a port that is not ours")
	}

	p.put(now, 61005)
	p.put(now.Add(time.Millisecond), 65535)
	if p.flow(61005) != flows[61005] {
		t.Error("late packets to a closed connection find nothing")
	}
	if _, err := p.take(now.Add(portRest-1), nil); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("before the port has rested: %v, want EADDRNOTAVAIL", err)
	}
	for i, want := range []uint16{61005, 65535} {
		if got, err := p.take(now.Add(portRest+time.Duration(i)*time.Millisecond), nil); err != nil || got != want {
			t.Errorf("took %d, %v; want %d", got, err, want)
		}
	}
	if p.left != 0 {
		t.Errorf("%d are left, want none", p.left)
	}
}
