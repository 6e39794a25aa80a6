//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// A backend that cannot take packets out of a tunnel, as one without an agent, shows in the node's counters, in each kind of
// tunnel: its kernel says so, and connections do not come about. Those to a backend that works do.
func TestSignalsOfABackendWithoutAgent(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	s.nginx()
	s.tunnel = "{gue_checksum: true}" // over IPv6, a host drops UDP without a checksum, and says nothing
	var services []rigService
	for i, forward := range []string{"ipip", "gue"} {
		for j, outer6 := range []bool{false, true} {
			services = append(services, s.service(testVIP4, "tcp", fmt.Sprint(80+2*i+j), forward, outer6))
		}
	}
	s.up(services...)
	if err := s.backends[0].agent.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	connect := func() {
		var attempts sync.WaitGroup
		for i := range services {
			for range 10 {
				attempts.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
					defer cancel()
					// Only port 80 has a server; elsewhere the error is all there is to come.
					conn, err := s.net.Client.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(testVIP4, uint16(80+i)).String())
					if err == nil {
						conn.Close()
					}
				})
			}
		}
		attempts.Wait()
	}
	seen := func() error {
		connect()
		st, err := s.nodes[0].status()
		if err != nil {
			return err
		}
		for _, svc := range st.Traffic.Services {
			without, with := svc.Backends[0], svc.Backends[1]
			if without.Unreachable == 0 || without.SYNs == 0 || without.Handshakes != 0 || with.Unreachable != 0 {
				return fmt.Errorf("%s %s: %+v, %+v", svc.Forward, svc.Ports, without.BackendStats, with.BackendStats)
			}
			if svc.Ports == "80" && with.Handshakes == 0 {
				return fmt.Errorf("no handshake with %s: %+v", with.Name, with.BackendStats)
			}
		}
		return nil
	}
	if err := s.nodes[0].daemon.WaitUntil(30*time.Second, "web-1 is unreachable", seen); err != nil {
		t.Fatal(err)
	}
	s.down()
}
