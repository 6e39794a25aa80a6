//go:build linux

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench"
	"github.com/sluice-lb/sluice/internal/agent"
	"github.com/sluice-lb/sluice/testenv"
)

// flood sends packets over IPv4 from the client's namespace to a VIP, so many a second, until it is stopped. Sources are random
// ones of 100.64.0.0/10, or the one that is given.
type flood struct {
	stop chan struct{}
	sent sync.WaitGroup
	n    int
}

// floodPacket fills in what a flood consists of. ip is 40 bytes, an IPv4 header with its addresses and 20 more.
type floodPacket func(ip []byte, port uint16)

// floodTCP is TCP segments with these flags, whose numbers and ports are random.
func floodTCP(flags byte) floodPacket {
	return func(ip []byte, port uint16) {
		ip[9] = unix.IPPROTO_TCP
		tcp := ip[20:]
		binary.BigEndian.PutUint16(tcp, uint16(1024+rand.IntN(60_000)))
		binary.BigEndian.PutUint16(tcp[2:], port)
		binary.BigEndian.PutUint32(tcp[4:], rand.Uint32())
		binary.BigEndian.PutUint32(tcp[8:], rand.Uint32())
		tcp[12], tcp[13] = 5<<4, flags
		binary.BigEndian.PutUint16(tcp[14:], 0xffff)
		binary.BigEndian.PutUint16(tcp[16:], 0)
		sum := uint32(unix.IPPROTO_TCP + 20)
		for i := 12; i < 40; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	}
}

func (s *system) flood(source netip.Addr, to netip.AddrPort, packet floodPacket, rate int) *flood {
	s.t.Helper()
	for _, link := range []string{"all", "client"} {
		if err := s.net.Router.SetSysctl("net.ipv4.conf."+link+".rp_filter", "0"); err != nil {
			s.t.Fatal(err)
		}
	}
	f := &flood{stop: make(chan struct{})}
	var fd int
	err := s.net.Client.Do(func() (err error) { // a raw socket whose user writes the IP header
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	dst := to.Addr().As4()
	f.sent.Go(func() {
		defer unix.Close(fd)
		p := make([]byte, 40)
		p[0], p[3], p[8] = 0x45, 40, 64
		copy(p[16:], dst[:])
		start, limit := time.Now(), 60*rate // a minute at the most
		for f.n < limit {
			select {
			case <-f.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			for due := int(time.Since(start).Seconds() * float64(rate)); f.n < due; f.n++ {
				src := [4]byte{100, 64 + byte(rand.IntN(64)), byte(rand.IntN(256)), byte(rand.IntN(256))}
				if source.IsValid() {
					src = source.As4()
				}
				copy(p[12:], src[:])
				packet(p, to.Port())
				_ = unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: dst}) // a full queue loses it, as in any flood
			}
		}
	})
	s.t.Cleanup(f.end)
	return f
}

// end stops the flood; a second time it does nothing.
func (f *flood) end() {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	f.sent.Wait()
}

func (s *system) webService(options string) rigService {
	v := s.service(testVIP4, "tcp", "80", "ipip", false)
	v.Name, v.Options = "web", options
	return v
}

// Kernel clients get through a challenge, on both IP versions: each of them proves its address once, and then all of its
// connections go on.
func TestChallengeRealClients(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 2, 2)
	s.nginx()
	four := s.webService("syn_defence: challenge")
	six := s.service(testVIP6, "tcp", "80", "ipip", false)
	six.Name, six.Options = "six", "syn_defence: challenge"
	s.up(four, six)
	s.curlAll(testVIP4, 100)
	s.curlAll(testVIP6, 100)
	challenged, proofs := uint64(0), uint64(0)
	for _, n := range s.nodes {
		for _, v := range s.status(n).Traffic.Services {
			challenged += v.Defence.Challenged
			proofs += v.Defence.Proofs
			if !v.Defence.Active {
				t.Errorf("%s of %s: %+v", v.Name, n.name(), v.Defence)
			}
		}
	}
	// A SYN and the proof for it may come to different nodes; each node asks for a proof of its own.
	sources := uint64(len(s.net.Sources4) + len(s.net.Sources6))
	if proofs < sources || challenged < proofs || challenged > 40*sources {
		t.Errorf("%d SYNs were challenged, %d proofs came, from %d sources", challenged, proofs, sources)
	}
	t.Logf("%d SYNs challenged, %d proofs, %d sources, two nodes", challenged, proofs, sources)
	s.down()
}

// A flood of SYNs from spoofed sources switches the defence on, under which every request of a regular client succeeds, and
// its end switches it off.
func TestSYNFlood(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	s.nginx()
	s.up(s.webService("syn_defence: auto"))
	node := s.nodes[0]
	s.curlAll(testVIP4, 20)
	defence := func() (active bool, challenged uint64) {
		d := s.status(node).Traffic.Services[0].Defence
		return d.Active, d.Challenged
	}
	if active, challenged := defence(); active || challenged != 0 {
		t.Fatalf("without a flood: active %v, %d challenged", active, challenged)
	}
	f := s.flood(netip.Addr{}, netip.AddrPortFrom(testVIP4, 80), floodTCP(0x02), 10_000)
	if err := node.daemon.WaitOutput(5*time.Second, "flood of SYNs"); err != nil {
		t.Fatal(err)
	}
	s.curlAll(testVIP4, 100)
	active, challenged := defence()
	if !active || challenged < 1000 {
		t.Errorf("in the flood: active %v, %d challenged", active, challenged)
	}
	if out := s.sluice(node, "status", "--attack"); !strings.Contains(out, "challenges") || !strings.Contains(out, "sources of most SYNs") {
		t.Errorf("sluice status --attack: %s", out)
	}
	f.end()
	t.Logf("%d SYNs were sent, %d challenged", f.n, challenged)
	if err := node.daemon.WaitOutput(20*time.Second, "the flood of SYNs is over"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(node.daemon.Output()) {
		if strings.Contains(line, "flood of SYNs") {
			t.Log(strings.TrimSpace(line))
		}
	}
	s.curlAll(testVIP4, 20)
	s.down()
}

// With cookies nodes answer all SYNs, and the backends' kernels make the connections, without ever seeing one, by the cookie that
// comes back to either node. In a flood too: every request of a regular client succeeds, and bulk transfers are whole.
func TestSYNCookie(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, rigOptions{nodes: 2, backends: 2, queues: 2, cookies: true})
	s.nginx()
	s.echoServers(7000)
	services := []rigService{s.webService(""), s.service(testVIP6, "tcp", "80", "ipip", false),
		s.service(testVIP4, "tcp", "7000", "gue", true), s.service(testVIP6, "tcp", "7000", "gue", false)}
	for i := range services {
		services[i].Options = "syn_defence: cookie"
	}
	s.up(services...)
	f := s.flood(netip.Addr{}, netip.AddrPortFrom(testVIP4, 80), floodTCP(0x02), 5_000)
	s.curlAll(testVIP4, 100)
	s.curlAll(testVIP6, 100)
	for i, vip := range s.vips {
		if err := s.transfer(netip.AddrPortFrom(vip, 7000), uint64(i), 25<<20); err != nil {
			t.Error(err)
		}
	}
	f.end()
	proofs := uint64(0)
	for _, n := range s.nodes {
		for _, v := range s.status(n).Traffic.Services {
			proofs += v.Defence.Proofs
		}
	}
	accepted, other := s.cookiesAccepted()
	if proofs < 202 || accepted < 202 || other != 0 {
		t.Errorf("%d cookies came back to nodes, backends made %d connections of them, and not of %d", proofs, accepted, other)
	}
	t.Logf("%d cookies came back, %d connections, %d SYNs of the flood", proofs, accepted, f.n)
	s.down()
}

// cookiesAccepted sums up what the agents made of cookies: connections, and segments that were none or refused.
func (s *system) cookiesAccepted() (accepted, other uint64) {
	s.t.Helper()
	for _, b := range s.backends {
		out, err := b.Run(5*time.Second, testenv.Cmd{Path: filepath.Join(bin, "sluice-agent"), Args: []string{"status", "--json", "--state-dir", s.path("agent")}})
		if err != nil {
			s.t.Fatal(err)
		}
		var st agent.Status
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			s.t.Fatal(err)
		}
		accepted += st.Packets.CookieAccepted
		other += st.Packets.CookieBad + st.Packets.CookieRefused + st.Packets.CookieNoMemory + st.Packets.CookieFailed
	}
	return accepted, other
}

// Behind NAT too the backends' kernels make the connections, of cookies that were given in the name of the VIP.
func TestSYNCookieNAT(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, rigOptions{nodes: 1, backends: 2, queues: 2, cookies: true})
	s.throughNodes()
	s.nginx()
	four, six := s.service(testVIP4, "tcp", "80", "nat", false), s.service(testVIP6, "tcp", "80", "nat", true)
	four.Options, six.Options = "syn_defence: cookie", "syn_defence: cookie"
	s.up(four, six)
	s.curlAll(testVIP4, 50)
	s.curlAll(testVIP6, 50)
	requests := uint64(50 * (len(s.net.Sources4) + len(s.net.Sources6)))
	if accepted, other := s.cookiesAccepted(); accepted < requests || other > requests/20 { // a segment that is sent again after the end is none
		t.Errorf("%d connections of cookies for %d requests, and %d segments that made none", accepted, requests, other)
	}
	s.down()
}

// auto answers a flood with cookies while every agent says that it takes them, and with challenges when one is gone; whatever it does,
// every request of a regular client succeeds.
func TestAutoTakesCookies(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, rigOptions{nodes: 1, backends: 2, queues: 2, cookies: true})
	s.nginx()
	s.up(s.webService("syn_defence: auto"))
	node := s.nodes[0]
	answers := func(want, cookies string) {
		t.Helper()
		err := node.daemon.WaitUntil(15*time.Second, "SYNs are answered with "+want, func() error {
			v := s.status(node).Traffic.Services[0]
			if v.Defence.Answer != want || !strings.Contains(v.Cookies, cookies) {
				return fmt.Errorf("with %s; cookies: %s", v.Defence.Answer, v.Cookies)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	answers("cookie", "ready")
	f := s.flood(netip.Addr{}, netip.AddrPortFrom(testVIP4, 80), floodTCP(0x02), 5_000)
	if err := node.daemon.WaitOutput(5*time.Second, "flood of SYNs"); err != nil {
		t.Fatal(err)
	}
	s.curlAll(testVIP4, 50)
	// The first of each source at the least: then its address is proved, and its SYNs go to the backends.
	if accepted, other := s.cookiesAccepted(); accepted < uint64(len(s.net.Sources4)) || other != 0 {
		t.Errorf("%d connections of cookies, and %d segments that made none", accepted, other)
	}
	if err := s.backends[0].agent.Kill(); err != nil { // its programs stay, and go on accepting what was given out
		t.Fatal(err)
	}
	answers("challenge", s.backends[0].name)
	s.curlAll(testVIP4, 50)
	f.end()
	if out := s.sluice(node, "status"); !strings.Contains(out, "nothing listens") {
		t.Errorf("sluice status does not say why there are no cookies:\n%s", out)
	}
	s.down()
}

// When more SYNs come than the worker can take, the XDP program drops those of unknown sources, and a user's connection goes on. As
// soon as the flood is over nothing is shed any more.
func TestOverload(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.webService("syn_defence: challenge"))
	node := s.nodes[0]
	if err := s.net.Router.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("100.64.0.0/12"), Kind: testenv.Blackhole}); err != nil {
		t.Fatal(err)
	}
	transport := (&testenv.Dialer{Namespace: s.net.Client, Source: s.net.Sources4[0]}).Transport()
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	request := func() {
		t.Helper()
		answer, err := client.Get(fmt.Sprintf("http://%v/name", testVIP4))
		if err != nil {
			t.Error(err)
			return
		}
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			t.Error(err)
		}
	}
	for range 30 { // the user's address has proved itself, and its connection lives
		request()
		time.Sleep(100 * time.Millisecond)
	}
	g, err := bench.StartGenerator(s.net.Router.Namespace, node.Port(), bench.Traffic{
		SrcMAC: s.net.Router.MAC, DstMAC: node.MAC, Source: netip.MustParsePrefix("100.64.0.0/12"), Target: netip.AddrPortFrom(testVIP4, 80),
		Protocol: bench.TCP, Flags: bench.SYN, Flows: 1 << 30, Duration: 4 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		request()
		time.Sleep(100 * time.Millisecond)
	}
	attack := s.sluice(node, "status", "--attack")
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(attack, "OVERLOADED") || !strings.Contains(attack, "web  ") {
		t.Errorf("sluice status --attack does not tell of the overload:\n%s", attack)
	}
	for _, words := range []string{"the node is overloaded", "the overload is over"} {
		if err := node.daemon.WaitOutput(30*time.Second, words); err != nil {
			t.Fatal(err)
		}
	}
	st := s.status(node)
	if st.Traffic.Steer.Shed == 0 || len(st.Traffic.Shed) != 0 {
		t.Errorf("%d packets were shed, and now it is %+v", st.Traffic.Steer.Shed, st.Traffic.Shed)
	}
	t.Logf("of %d SYNs %d were shed, %d found a ring full", g.Sent(), st.Traffic.Steer.Shed, st.Traffic.Interfaces[0].Queues[0].RXRingFull)
	request()
	s.down()
}

// A source on a deny list reaches nothing, and is dropped before any worker sees it; of the node's list and the service's, each
// is enough; the longest prefix decides. A reload is enough to change it.
func TestACL(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	s.nginx()
	six := s.service(testVIP6, "tcp", "80", "ipip", false)
	s.up(s.webService(""), six)
	node := s.nodes[0]
	blocked, free := s.net.Sources4[0], s.net.Sources4[1]
	reaches := func(source, vip netip.Addr) bool {
		_, err := s.net.Client.Run(5*time.Second, curlOnce(source, vip))
		return err == nil
	}
	denied := func() uint64 { return s.status(node).Traffic.Steer.Denied }
	if !reaches(blocked, testVIP4) || denied() != 0 {
		t.Fatal("without a list")
	}
	reload := func(limits, service string) {
		t.Helper()
		s.limits = limits
		if err := s.configure(node, s.webService(service), six); err != nil {
			t.Fatal(err)
		}
		s.sluice(node, "reload")
	}
	for _, c := range []struct{ name, limits, service string }{
		{"the node's list", fmt.Sprintf("{deny: [%s]}", blocked), ""},
		{"a prefix but for one", fmt.Sprintf("{deny: [%s], allow: [%s]}", netip.PrefixFrom(blocked, 24).Masked(), free), ""},
		{"the service's list", "", fmt.Sprintf("limits: {deny: [%s]}", blocked)},
	} {
		reload(c.limits, c.service)
		before := denied()
		if reaches(blocked, testVIP4) {
			t.Errorf("%s: the source reaches the VIP", c.name)
		}
		if denied() == before {
			t.Errorf("%s: nothing was counted as denied", c.name)
		}
		if !reaches(free, testVIP4) {
			t.Errorf("%s: another source does not reach the VIP", c.name)
		}
		if !reaches(s.net.Sources6[0], testVIP6) {
			t.Errorf("%s: the other service is not reached", c.name)
		}
	}
	reload("", "")
	if !reaches(blocked, testVIP4) {
		t.Error("without a list again, the source does not reach the VIP")
	}
	s.down()
}

// A source that sends far more than its limit is dropped, soon in the XDP program already, and others do not notice.
func TestLimits(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	s.nginx()
	s.limits = "{per_source: {packets: 2k/s}}"
	s.up(s.webService(""))
	node := s.nodes[0]
	attacker := s.net.Sources4[0]
	f := s.flood(attacker, netip.AddrPortFrom(testVIP4, 80), floodTCP(0x10), 20_000)
	time.Sleep(2 * time.Second)
	for _, source := range s.net.Sources4[1:] {
		if by, err := s.curl(source, testVIP4, 50); err != nil || total(by) != 50 {
			t.Errorf("%v: %v, %v", source, by, err)
		}
	}
	f.end()
	st := s.status(node)
	dropped := uint64(0)
	for _, w := range st.Traffic.Workers {
		dropped += w.Dropped["source_limit"]
	}
	if dropped == 0 || st.Traffic.Steer.Banned == 0 {
		t.Errorf("%d packets were dropped by the limit, %d in the XDP program", dropped, st.Traffic.Steer.Banned)
	}
	t.Logf("of %d packets %d were dropped by the limit, %d in the XDP program", f.n, dropped, st.Traffic.Steer.Banned)
	if out := s.sluice(node, "status"); !strings.Contains(out, "source_limit") || !strings.Contains(out, "banned") {
		t.Errorf("sluice status: %s", out)
	}
	s.down()
}

// curlOnce is a request that does not wait for long.
func curlOnce(source, vip netip.Addr) testenv.Cmd {
	return testenv.Cmd{Path: "curl", Args: []string{"-s", "-S", "-g", "--interface", source.String(), "--max-time", "1.5", fmt.Sprintf("http://%s/name", urlHost(vip))}}
}

func total(by map[string]int) (n int) {
	for _, k := range by {
		n += k
	}
	return n
}
