//go:build linux

package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var vips = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}

func newTopology(t *testing.T, o TopologyOptions) *Topology {
	t.Helper()
	top, err := NewTopology(ForTest(t), o)
	ok(t, err)
	return top
}

// serve answers HTTP requests inside a namespace with the client's address.
func serve(t *testing.T, ns *Namespace, addr netip.Addr) (url string) {
	t.Helper()
	l, err := ns.Listen("tcp", netip.AddrPortFrom(addr, 80).String())
	ok(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, host)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return "http://" + l.Addr().String() + "/"
}

// get makes a request from one of the client's addresses and returns the body.
func get(t *testing.T, top *Topology, source netip.Addr, url string) string {
	t.Helper()
	transport := (&Dialer{Namespace: top.Client, Source: source}).Transport()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	ok(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ok(t, err)
	return string(body)
}

// TestTopologyReach: every address of the client reaches every host, and is seen as itself.
func TestTopologyReach(t *testing.T) {
	top := newTopology(t, TopologyOptions{Nodes: 1, Backends: 2})
	late, err := top.AddBackend()
	ok(t, err)
	if len(top.Backends) != 3 || top.Backends[2] != late || late.IPv4 != netip.MustParseAddr("10.0.0.13") {
		t.Errorf("added %v to %v", late, top.Backends)
	}
	if len(top.Sources4) != 4 || len(top.Sources6) != 4 {
		t.Fatalf("the client has %v and %v, want four of each", top.Sources4, top.Sources6)
	}
	for _, host := range append([]*Host{top.Nodes[0]}, top.Backends...) {
		v4, v6 := serve(t, host.Namespace, host.IPv4), serve(t, host.Namespace, host.IPv6)
		for i := range top.Sources4 {
			if got := get(t, top, top.Sources4[i], v4); got != top.Sources4[i].String() {
				t.Errorf("%s sees %s as %s", v4, top.Sources4[i], got)
			}
			if got := get(t, top, top.Sources6[i], v6); got != top.Sources6[i].String() {
				t.Errorf("%s sees %s as %s", v6, top.Sources6[i], got)
			}
		}
	}
	l, err := top.Nodes[0].Link("eth0")
	ok(t, err)
	if l.Attrs().NumRxQueues != 2 || l.Attrs().MTU != LANMTU || l.Attrs().HardwareAddr.String() != top.Nodes[0].MAC.String() {
		t.Errorf("node's eth0: %+v", l.Attrs())
	}
}

// TestTopologyDirectReturn: a host that has the VIP on its loopback is reached through the router's route and answers
// with the VIP as its source.
func TestTopologyDirectReturn(t *testing.T) {
	top := newTopology(t, TopologyOptions{Backends: 1})
	backend := top.Backends[0]
	ok(t, top.Announce(vips, backend))
	for i, vip := range vips {
		ok(t, backend.AddAddr("lo", netip.PrefixFrom(vip, vip.BitLen())))
		source := [][]netip.Addr{top.Sources4, top.Sources6}[i][1]
		if got := get(t, top, source, serve(t, backend.Namespace, vip)); got != source.String() {
			t.Errorf("%v sees %v as %s", vip, source, got)
		}
	}
	ok(t, top.Announce(vips))
	for _, vip := range vips {
		// The kernel overlooks an ICMP error that comes back before connect has gone to sleep, so a second SYN is needed.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := top.Client.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(vip, 80).String())
		if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("%v with no node: %v; want unreachable", vip, err)
		}
	}
}

// TestTopologySpreads: with two nodes the router spreads the flows of one client address; with one it does not.
func TestTopologySpreads(t *testing.T) {
	top := newTopology(t, TopologyOptions{Nodes: 2, VIPs: vips})
	for i, vip := range vips {
		var got [2]atomic.Int64
		for j, node := range top.Nodes {
			ok(t, node.AddAddr("lo", netip.PrefixFrom(vip, vip.BitLen())))
			c, err := node.ListenPacket("udp", netip.AddrPortFrom(vip, 7).String())
			ok(t, err)
			defer c.Close()
			go func() {
				for {
					if _, _, err := c.ReadFrom(make([]byte, 8)); err != nil {
						return
					}
					got[j].Add(1)
				}
			}()
		}
		dialer := Dialer{Namespace: top.Client, Source: [][]netip.Addr{top.Sources4, top.Sources6}[i][0]}
		for _, hops := range []int{2, 1, 2} {
			ok(t, top.Announce(vips, top.Nodes[:hops]...))
			got[0].Store(0)
			got[1].Store(0)
			const flows = 300
			for sent := range int64(flows) {
				conn, err := dialer.DialContext(context.Background(), "udp", netip.AddrPortFrom(vip, 7).String())
				ok(t, err)
				_, err = conn.Write([]byte("x"))
				ok(t, err)
				conn.Close()
				if sent%50 == 49 { // no more at a time than a socket's buffer takes
					eventually(t, fmt.Sprintf("datagram %d to %v over %d nodes has arrived", sent, vip, hops), func() bool {
						return got[0].Load()+got[1].Load() > sent
					})
				}
			}
			first, second := got[0].Load(), got[1].Load()
			// Even by hash: the standard deviation is 8.7, so 90 is out of reach of chance.
			if hops == 2 && (first < 90 || second < 90) || hops == 1 && second != 0 {
				t.Errorf("%v over %d nodes: %d and %d of %d flows", vip, hops, first, second, flows)
			}
		}
	}
}
