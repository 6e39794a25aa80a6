//go:build linux && floods

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// floodScenario is a flood, and what is set against it.
type floodScenario struct {
	name, defence  string
	limits         string // the configuration's, in YAML flow style
	web, udp       string // options of the services
	cookies        bool
	source         bool // the flood comes from one source, else from random ones
	packet         floodPacket
	port           uint16
	least          float64 // of regular requests on new connections that succeed; 0: it is only told
	leastLongLived float64
}

var floodScenarios = []floodScenario{
	{name: "none", defence: "off", least: 1, leastLongLived: 1},
	{name: "SYN", defence: "off", packet: floodTCP(0x02), port: 80},
	{name: "SYN", defence: "cookie", web: "syn_defence: cookie", cookies: true, packet: floodTCP(0x02), port: 80, least: 0.999, leastLongLived: 1},
	{name: "SYN", defence: "challenge", web: "syn_defence: challenge", packet: floodTCP(0x02), port: 80, least: 0.999, leastLongLived: 1},
	{name: "SYN", defence: "auto", web: "syn_defence: auto", packet: floodTCP(0x02), port: 80, least: 0.999, leastLongLived: 1},
	{name: "ACK", defence: "off", packet: floodTCP(0x10), port: 80},
	{name: "ACK", defence: "ceiling", web: "limits: {total: {flows: 500/s}}", packet: floodTCP(0x10), port: 80},
	{name: "RST", defence: "off", packet: floodTCP(0x04), port: 80},
	{name: "fragments", defence: "off", packet: floodFragments, port: 7001},
	{name: "UDP, one source", defence: "off", source: true, packet: floodUDP, port: 7001},
	{name: "UDP, one source", defence: "limit", limits: "{per_source: {packets: 5k/s}}", source: true, packet: floodUDP, port: 7001, least: 0.999, leastLongLived: 1},
	{name: "UDP", defence: "off", packet: floodUDP, port: 7001},
	{name: "UDP", defence: "ceiling", udp: "limits: {total: {packets: 2k/s}}", packet: floodUDP, port: 7001, least: 0.999, leastLongLived: 1},
}

// TestFloods lets regular clients do requests during floods, with and without a defence, and prints how they fared. All share the
// machine's cores with the flood and the backends, so it is the rows beside each other that say something.
func TestFloods(t *testing.T) {
	rate, err := strconv.Atoi(os.Getenv("SLUICE_FLOODS"))
	if err != nil {
		t.Fatalf("SLUICE_FLOODS is the rate of the floods, packets a second: %v; make test-floods sets it", err)
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "FLOOD\tDEFENCE\tSENT/S\tTO BACKENDS/S\tNEW CONNECTIONS\tOK\tP50\tP99\tLONG-LIVED\tOK\tP50\tP99\n")
	for _, c := range floodScenarios {
		t.Run(fmt.Sprintf("%s against %s", c.defence, c.name), func(t *testing.T) { c.run(t, w, rate) })
	}
	w.Flush()
	t.Logf("\n%s", &table)
}

func (c *floodScenario) run(t *testing.T, table io.Writer, rate int) {
	const duration = 5 * time.Second
	s := newSystemWith(t, rigOptions{nodes: 1, backends: 2, queues: 2, cookies: c.cookies})
	s.nginx()
	s.limits = c.limits
	udp := s.service(testVIP4, "udp", "7001", "ipip", false)
	udp.Options = c.udp
	s.up(s.webService(c.web), udp)
	web := netip.AddrPortFrom(testVIP4, 80)
	warm := &requests{}
	s.request(warm, web, true, time.Second)

	long, fresh := &requests{}, &requests{}
	before := s.status(s.nodes[0])
	began := time.Now()
	var f *flood
	if c.packet != nil {
		source := netip.Addr{}
		if c.source {
			source = s.net.Sources4[0].Next().Next().Next().Next().Next().Next().Next().Next()
		}
		f = s.flood(source, netip.AddrPortFrom(testVIP4, c.port), c.packet, rate)
	}
	var both sync.WaitGroup
	both.Go(func() { s.request(long, web, true, duration) })
	both.Go(func() { s.request(fresh, web, false, duration) })
	both.Wait()
	sent := 0
	if f != nil {
		f.end()
		sent = f.n
	}
	elapsed := time.Since(began).Seconds()
	after := s.status(s.nodes[0])
	forwarded := uint64(0)
	for i := range after.Traffic.Services {
		forwarded += after.Traffic.Services[i].Forwarded.Packets - before.Traffic.Services[i].Forwarded.Packets
	}
	fmt.Fprintf(table, "%s\t%s\t%.0f\t%.0f\t%s\t%s\n", c.name, c.defence, float64(sent)/elapsed, float64(forwarded)/elapsed, fresh, long)
	if r := fresh.succeeded(); r < c.least {
		t.Errorf("of the requests on new connections %.2f %% succeeded, want %.2f %%", 100*r, 100*c.least)
	}
	if r := long.succeeded(); r < c.leastLongLived {
		t.Errorf("of the requests on long-lived connections %.2f %% succeeded, want %.2f %%", 100*r, 100*c.leastLongLived)
	}
	s.down()
}

// requests is how the requests of many clients fared.
type requests struct {
	mu    sync.Mutex
	took  []time.Duration // those that succeeded
	total int
}

func (r *requests) succeeded() float64 { return float64(len(r.took)) / float64(max(r.total, 1)) }

// String is the columns of the table.
func (r *requests) String() string {
	slices.Sort(r.took)
	at := func(p float64) time.Duration {
		if len(r.took) == 0 {
			return 0
		}
		return r.took[int(p*float64(len(r.took)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d\t%.2f %%\t%v\t%v", r.total, 100*r.succeeded(), at(0.5), at(0.99))
}

// floodUDP is datagrams from random ports.
func floodUDP(ip []byte, port uint16) {
	ip[9] = unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[20:], uint16(1024+rand.IntN(60_000)))
	binary.BigEndian.PutUint16(ip[22:], port)
	binary.BigEndian.PutUint16(ip[24:], 20)
}

// floodFragments is later fragments whose first never comes.
func floodFragments(ip []byte, _ uint16) {
	ip[9] = unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[4:], uint16(1+rand.IntN(0xffff)))
	binary.BigEndian.PutUint16(ip[6:], 0x2000|uint16(1+rand.IntN(1000)))
}

// request has fifty clients do requests for some time, each on a connection of its own or each time on a new one. One that is not
// answered within two seconds has failed.
func (s *system) request(r *requests, to netip.AddrPort, longLived bool, duration time.Duration) {
	const clients = 50
	end := time.Now().Add(duration)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			transport := (&testenv.Dialer{Namespace: s.net.Client, Source: s.net.Sources4[i%len(s.net.Sources4)]}).Transport()
			transport.DisableKeepAlives = !longLived
			defer transport.CloseIdleConnections()
			client := http.Client{Transport: transport}
			for time.Now().Before(end) {
				began := time.Now()
				err := fetch(&client, fmt.Sprintf("http://%v/name", to))
				took := time.Since(began)
				r.mu.Lock()
				r.total++
				if err == nil {
					r.took = append(r.took, took)
				}
				r.mu.Unlock()
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	all.Wait()
}

func fetch(client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// TestCookieThroughput sends a gigabyte there and back, over connections made of a cookie and over ordinary ones in turn, and
// prints how long each took.
func TestCookieThroughput(t *testing.T) {
	s := newSystemWith(t, rigOptions{nodes: 1, backends: 1, queues: 2, cookies: true})
	s.echoServers(7000)
	s.echoServers(7001)
	cookie, ordinary := s.service(testVIP4, "tcp", "7000", "ipip", false), s.service(testVIP4, "tcp", "7001", "ipip", false)
	cookie.Options = "syn_defence: cookie"
	s.up(cookie, ordinary)
	var took [2]time.Duration
	for round := range 4 {
		for i := range took {
			i = (i + round) % len(took)
			began := time.Now()
			if err := s.transfer(netip.AddrPortFrom(testVIP4, uint16(7000+i)), uint64(round), 256<<20); err != nil {
				t.Fatal(err)
			}
			took[i] += time.Since(began)
		}
	}
	t.Logf("cookie %v, ordinary %v: %.0f %% of the rate", took[0], took[1], 100*took[1].Seconds()/took[0].Seconds())
	s.down()
}
