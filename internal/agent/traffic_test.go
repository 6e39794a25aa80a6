//go:build linux

package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"

	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

const bulk = 8 << 20

// serve answers on the VIPs in the backend: /down sends bulk bytes, /up answers the checksum of what it got, and UDP
// port 9 echoes.
func (r *rig) serve(payload []byte) {
	r.t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) { w.Write(payload) })
	mux.HandleFunc("/up", func(w http.ResponseWriter, q *http.Request) {
		h := sha256.New()
		io.Copy(h, q.Body)
		fmt.Fprintf(w, "%x %s", h.Sum(nil), q.RemoteAddr)
	})
	for _, vip := range []netip.Addr{vip4, vip6} {
		l, err := r.backend.Listen("tcp", netip.AddrPortFrom(vip, 80).String())
		r.ok(err)
		server := &http.Server{Handler: mux}
		go server.Serve(l)
		r.t.Cleanup(func() { server.Close() })

		c, err := r.backend.ListenPacket("udp", netip.AddrPortFrom(vip, 9).String())
		r.ok(err)
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				c.WriteTo(buf[:n], from)
			}
		}()
		r.t.Cleanup(func() { c.Close() })
	}
}

// exchange fetches and sends the payload over TCP and a burst of datagrams over UDP.
func (r *rig) exchange(vip netip.Addr, payload []byte) error {
	transport := r.node.Dialer().Transport()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	base := "http://" + netip.AddrPortFrom(vip, 80).String()

	resp, err := client.Get(base + "/down")
	if err != nil {
		return err
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !bytes.Equal(got, payload) {
		return fmt.Errorf("download: %d of %d bytes are right, %w", len(got), len(payload), err)
	}

	if resp, err = client.Post(base+"/up", "application/octet-stream", bytes.NewReader(payload)); err != nil {
		return err
	}
	answer, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(payload)
	var hash, remote string
	fmt.Sscan(string(answer), &hash, &remote)
	if hash != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("upload: the server's checksum is %s", hash)
	}
	from, err := netip.ParseAddrPort(remote)
	if err != nil || from.Addr() != node4 && from.Addr() != node6 {
		return fmt.Errorf("the server sees the client as %s: %w", remote, err)
	}

	conn, err := r.node.Dialer().DialContext(context.Background(), "udp", netip.AddrPortFrom(vip, 9).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	const burst = 16
	for i := range burst {
		if _, err := conn.Write(payload[i*1200 : (i+1)*1200]); err != nil {
			return err
		}
	}
	back := make([]byte, 2048)
	for i := range burst {
		n, err := conn.Read(back)
		if err != nil || !bytes.Equal(back[:n], payload[i*1200:(i+1)*1200]) {
			return fmt.Errorf("UDP: %d bytes of datagram %d came back: %w", n, i, err)
		}
	}
	return nil
}

// TestTraffic sends real TCP and UDP through the programs, with each pair of families, in IP-in-IP and GUE, over a
// network that has no room for the outer headers, and holds the counters against what was sent. With merging, the
// backend's end of the cable does GRO, so that the program meets packets made of many; GUE it does not look into.
func TestTraffic(t *testing.T) {
	payload := make([]byte, bulk)
	rand.NewChaCha8([32]byte{1}).Read(payload)
	for _, c := range []struct {
		name                  string
		gue, checksums, merge bool
	}{
		{"IP-in-IP", false, false, false},
		{"IP-in-IP, merging", false, false, true},
		{"GUE", true, false, false},
		{"GUE, merging", true, false, true},
		{"GUE with checksums", true, true, false},
		{"GUE with checksums, merging", true, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.wrap()
			r.gue.Store(c.gue)
			r.checksums.Store(c.checksums)
			if c.merge {
				// A sender that cuts segments itself, and a receiver that merges those that come within 100 µs.
				r.ok(r.node.SetFeatures("eth0", map[string]bool{testenv.TXChecksum: false}))
				r.ok(r.backend.SetFeatures("eth0", map[string]bool{testenv.SoftMerge: true, "rx-udp-gro-forwarding": !c.gue}))
				r.flushAfter("100000")
			}
			agent := r.start(append(both, "--source", "10.0.0.1", "--source", "fd00::/64")...)
			r.serve(payload)
			for _, p := range pairs {
				p.gue = c.gue
				t.Run(p.String(), func(t *testing.T) {
					r.outer6.Store(p.outer6)
					vip := vip4
					if p.inner6 {
						vip = vip6
					}
					segments, err := r.backend.Counters()
					r.ok(err)
					sent, before := r.wrapped.Load(), r.status().Packets
					if err := r.exchange(vip, payload); err != nil {
						t.Fatal(err)
					}
					// The books: what was sent was decapsulated, packet by packet; two connections were made, or one.
					var counted Counters
					r.eventually("what was sent is counted", func() bool {
						counted = minus(r.status().Packets, before)
						want := p.decapsulated(r.wrapped.Load() - sent)
						want.Clamped = counted.Clamped
						return counted == want
					})
					if counted.Clamped < 1 || counted.Clamped > 2 {
						t.Errorf("%d SYN-ACKs were clamped", counted.Clamped)
					}
					now, err := r.backend.Counters()
					r.ok(err)
					in := now["TcpInSegs"] - segments["TcpInSegs"]
					packets := counted.DecapsulatedIPv4 + counted.DecapsulatedIPv6
					t.Logf("%d packets were given to TCP as %d", packets, in)
					if merged := c.merge && !c.gue; merged != (in < packets/2) {
						t.Errorf("%d packets were given to TCP as %d: is merged=%t true?", packets, in, merged)
					}
					if n := now["TcpInCsumErrors"] - segments["TcpInCsumErrors"]; n > 0 {
						t.Errorf("%d segments had wrong checksums", n)
					}
				})
			}
			if n := r.tooLong.Load(); n > 0 {
				t.Errorf("%d packets did not fit the network with their outer headers", n)
			}
			r.stop(agent, unix.SIGTERM)
		})
	}
}

// flushAfter sets how many nanoseconds the backend's end of the cable waits for more to merge.
func (r *rig) flushAfter(ns string) {
	r.t.Helper()
	_, err := r.backend.Run(time.Second, testenv.Cmd{Path: "sh", Args: []string{"-c", "echo " + ns + " > /sys/class/net/eth0/gro_flush_timeout"}})
	r.ok(err)
}

// TestSourceRefused: what comes from elsewhere than --source does not reach the VIP.
func TestSourceRefused(t *testing.T) {
	r := newRig(t)
	r.wrap()
	r.start(append(both, "--source", "10.0.0.99")...)
	r.serve([]byte("served"))
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if c, err := r.node.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(vip4, 80).String()); err == nil {
		c.Close()
		t.Fatal("a connection from a source that is not allowed was made")
	}
	if n := r.status().Packets; n.Source == 0 || n != (Counters{Source: n.Source}) {
		t.Errorf("counted %+v", n)
	}
}

// TestTaggedUntouched: a packet of a VLAN is not for this interface, also when the kernel has taken its tag off.
func TestTaggedUntouched(t *testing.T) {
	r := newRig(t)
	r.start(both...)
	link, err := r.node.Link("eth0")
	r.ok(err)
	peer, err := r.backend.Link("eth0")
	r.ok(err)
	pkt := newTestPacket(pairs[0])
	pkt.eth.DstMAC = peer.Attrs().HardwareAddr
	plain := pkt.frame()
	tagged := append(append(bytes.Clone(plain[:12]), 0x81, 0, 0, 5), plain[12:]...)
	r.ok(r.node.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, frame := range [][]byte{tagged, tagged, plain} {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
				return err
			}
		}
		return nil
	}))
	r.eventually("the packet without a tag is counted", func() bool { return r.status().Packets.DecapsulatedIPv4 > 0 })
	if n := r.status().Packets; n != (Counters{DecapsulatedIPv4: 1}) {
		t.Errorf("counted %+v: a tagged packet was touched", n)
	}
}

// TestStrictReversePath: the host reaches the client through another interface than the one that packets come in on.
func TestStrictReversePath(t *testing.T) {
	r := newRig(t)
	r.cable("eth1", "10.1.0.1/24", "10.1.0.2/24")
	r.wrap()
	client := netip.PrefixFrom(client4, 32)
	r.ok(r.node.AddAddr("lo", client))
	r.ok(r.backend.AddRoute(testenv.Route{Dst: client, Link: "eth1", Via: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}))
	r.setSysctl("net/ipv4/conf/all/rp_filter", "1")
	before := r.snapshot()
	agent := r.start(both...)
	r.serve([]byte("served"))

	connects := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		d := &testenv.Dialer{Namespace: r.node, Source: client4}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(vip4, 80).String())
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if !connects() {
		t.Error("no connection: is the strict filter still on?")
	}
	if v := r.sysctl("net/ipv4/conf/eth1/rp_filter"); v != "0" {
		t.Errorf("rp_filter of eth1, which the agent has nothing to do with, is %s", v)
	}
	r.setSysctl("net/ipv4/conf/eth0/rp_filter", "1")
	if connects() {
		t.Error("a connection without the loose filter: this test shows nothing")
	}
	r.setSysctl("net/ipv4/conf/eth0/rp_filter", "2")
	r.stop(agent, os.Interrupt)
	r.unchanged(before)
}

// TestAddressesFollowed: nodes may send to an address that the interface gets later, and no longer to one that it lost.
func TestAddressesFollowed(t *testing.T) {
	r := newRig(t)
	r.wrap()
	r.ok(r.backend.DelAddr("eth0", netip.PrefixFrom(here4, 24)))
	r.start("--vip", vip4.String(), "--interface", "eth0")
	r.setSysctl("net/ipv4/conf/all/arp_ignore", "0") // nothing here is about ARP
	probe := func() bool {
		before := r.status().Packets.DecapsulatedIPv4
		c, err := r.node.Dialer().DialContext(context.Background(), "udp", netip.AddrPortFrom(vip4, 9).String())
		r.ok(err)
		defer c.Close()
		c.Write([]byte("probe"))
		time.Sleep(30 * time.Millisecond)
		return r.status().Packets.DecapsulatedIPv4 > before
	}
	if probe() {
		t.Fatal("taken without an address")
	}
	r.ok(r.backend.AddAddr("eth0", netip.PrefixFrom(here4, 24)))
	r.eventually("packets to the new address are taken", probe)
	r.ok(r.backend.DelAddr("eth0", netip.PrefixFrom(here4, 24)))
	r.ok(r.backend.AddAddr("eth0", netip.MustParsePrefix("10.0.0.3/24")))
	mac, err := r.backend.Link("eth0")
	r.ok(err)
	r.ok(r.node.AddNeighbour("eth0", here4, mac.Attrs().HardwareAddr))
	r.eventually("packets to the old address are no longer taken", func() bool { return !probe() })
}
