//go:build linux && floods

package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// floodScenario is a flood, what is set against it, and how regular clients must fare; 0: it is only told.
type floodScenario struct {
	flood     floodKind
	defence   string
	limits    string // of the node: more of them in YAML flow style, beginning with a comma
	web, udp  string // options of the services
	cookies   bool
	overload  bool    // at three times what a slow worker takes, else at half of what the node can answer
	newOK     float64 // of the requests on new connections, how many succeed
	longOK    float64 // of those on long-lived connections
	longWhole float64 // how many of these succeed a second, of those in the control
}

var floodScenarios = []floodScenario{
	{flood: floodOfSYNs, defence: "off"},
	{flood: floodOfSYNs, defence: "cookie", web: "syn_defence: cookie", cookies: true, newOK: 0.999, longOK: 1},
	{flood: floodOfSYNs, defence: "challenge", web: "syn_defence: challenge", newOK: 0.999, longOK: 1},
	{flood: floodOfSYNs, defence: "auto", web: "syn_defence: auto", newOK: 0.999, longOK: 1},
	{flood: floodOfSYNs, defence: "off", overload: true},
	{flood: floodOfSYNs, defence: "cookie", web: "syn_defence: cookie", cookies: true, overload: true, newOK: 0.9, longWhole: 0.99},
	{flood: floodOfSYNs, defence: "auto", web: "syn_defence: auto", overload: true, longWhole: 0.99},
	{flood: floodOfACKs, defence: "off"},
	{flood: floodOfACKs, defence: "cookie", web: "syn_defence: cookie", cookies: true, newOK: 0.999, longOK: 1},
	{flood: floodOfACKs, defence: "ceiling", web: "limits: {total: {flows: 500/s}}", longOK: 0.99},
	{flood: floodOfRSTs, defence: "off"},
	{flood: floodOfRSTs, defence: "cookie", web: "syn_defence: cookie", cookies: true, newOK: 0.999, longOK: 1},
	{flood: floodOfFragments, defence: "off"},
	{flood: floodOfFragments, defence: "ceiling", udp: "limits: {total: {packets: 2k/s}}", newOK: 0.999, longOK: 1},
	{flood: floodOfOne, defence: "off"},
	{flood: floodOfOne, defence: "limit", limits: ", per_source: {packets: 5k/s}", newOK: 0.999, longOK: 1},
	{flood: floodOfUDP, defence: "off"},
	{flood: floodOfUDP, defence: "ceiling", udp: "limits: {total: {packets: 2k/s}}", newOK: 0.999, longOK: 1},
}

// floodRates is what the node on this machine takes, packets a second.
type floodRates struct {
	made     float64 // SYNs that one core can make at the most
	received float64 // of these, what the worker takes
	answered float64 // and answers by cookies
}

// TestFloods lets regular clients do requests during floods, with and without a defence, and prints how they fared. First it
// measures what the node can take, which says at which rates.
func TestFloods(t *testing.T) {
	c := shareCores(t)
	var rates, slow floodRates
	if !t.Run("rates", func(t *testing.T) { rates, slow = measureRates(t, c) }) {
		t.FailNow()
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "FLOOD\tDEFENCE\tOFFERED/S\tSHED/S\tRING FULL/S\tANSWERED/S\tTO BACKENDS/S\tCLIENTS\tN\tOK\tP50\tP99\tOF CONTROL\tCALM P50\tCALM P99\tOTHERS\n")
	for _, f := range floodScenarios {
		rate, name := rates.answered/2, f.flood.name
		if f.overload {
			rate, name = min(3*slow.received, rates.made), name+", overload"
		}
		t.Run(fmt.Sprintf("%s against %s", f.defence, name), func(t *testing.T) { f.run(t, c, w, name, uint64(rate)) })
	}
	w.Flush()
	t.Logf("one worker, on core %d; all else on %d more; the floods' generator among them\n%s", c.worker, c.others.Count(), &table)
}

// measureRates floods a service that answers with cookies as fast as can be, first a node whose worker has its core for itself, then
// one with a slow worker.
func measureRates(t *testing.T, c *cores) (r, slow floodRates) {
	s := newFloodSystem(t, c, true)
	s.limits = limitsWith("")
	s.upOn(c, s.webService("syn_defence: cookie"))
	measure := func(r *floodRates) {
		for range 3 { // the best round: what else the machine does only takes away
			n := s.atFullSpeed(floodOfSYNs, floodSources, s.nodes[0].Port())
			r.made = max(r.made, n.perSecond(n.sent))
			r.received = max(r.received, n.perSecond(n.received))
			r.answered = max(r.answered, n.perSecond(n.challenged))
		}
		t.Logf("SYNs as fast as can be: %.0f/s sent, %.0f/s received by the worker, %.0f/s answered with cookies", r.made, r.received, r.answered)
	}
	measure(&r)
	stop := c.slowWorker(t)
	measure(&slow)
	stop()
	s.down()
	return r, slow
}

// floodRound is how classes of clients fared in a control and in the flood after it.
type floodRound struct {
	control, flood []*requests
	tally          tally
	away           float64 // the part of the cores' time that others had
}

func (f *floodScenario) run(t *testing.T, c *cores, table io.Writer, name string, rate uint64) {
	const (
		duration = 4 * time.Second
		rounds   = 2                // that count: those in which the machine did least else
		tries    = 3                // of rounds, until so many are undisturbed
		mostAway = 0.1              // in an undisturbed one
		settle   = time.Second      // from the beginning of a flood until it counts
		most     = 15 * time.Second // for which a flood goes on if nobody ends it
	)
	s := newFloodSystem(t, c, f.cookies)
	s.limits = limitsWith(f.limits)
	udp := s.service(testVIP4, "udp", "7001", "ipip", false)
	udp.Options = f.udp
	s.upOn(c, s.webService(f.web), udp)
	if f.overload {
		defer c.slowWorker(t)()
	}
	web := netip.AddrPortFrom(testVIP4, 80)
	sources := s.net.Sources4
	classes := []*clientClass{
		newClients(s.net.Client, "new", web, sources[:classSize], false),
		newClients(s.net.Client, "long-lived", web, sources[classSize:2*classSize], true),
	}
	together := func(classes []*clientClass, duration time.Duration) []*requests {
		results := make([]*requests, len(classes))
		var all sync.WaitGroup
		for i, class := range classes {
			all.Go(func() { results[i] = class.request(duration) })
		}
		all.Wait()
		return results
	}
	flooded := func(from netip.Prefix, classes []*clientClass) ([]*requests, tally) {
		g := s.startFlood(f.flood, from, s.nodes[0].Port(), rate, most)
		time.Sleep(settle)
		end := s.counting(g)
		results := together(classes, duration)
		counted := end()
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
		time.Sleep(200 * time.Millisecond) // the last of it is taken
		return results, counted
	}

	together(classes, duration/5) // the first requests do what the next ones need not
	calm := together(classes, duration)
	var all []floodRound
	for undisturbed := 0; undisturbed < rounds && len(all) < tries; {
		now := classes
		if f.overload { // some have never been heard of, each time others
			few := classSize / tries
			first := 2*classSize + few*len(all)
			now = append(classes[:2:2], newClients(s.net.Client, "newcomers", web, sources[first:first+few], false))
		}
		before := c.usage(t)
		var r floodRound
		r.control, _ = flooded(deniedSources, classes)
		r.flood, r.tally = flooded(floodSources, now)
		r.away = c.usage(t).since(before)
		if all = append(all, r); r.away <= mostAway {
			undisturbed++
		}
	}
	for _, class := range classes {
		class.close()
	}
	slices.SortFunc(all, func(a, b floodRound) int { return cmp.Compare(a.away, b.away) })
	sum := floodRound{control: []*requests{{}, {}}, flood: []*requests{{}, {}, {}}}
	for _, r := range all[:rounds] {
		for i := range r.control {
			sum.control[i].add(r.control[i])
		}
		for i := range r.flood {
			sum.flood[i].add(r.flood[i])
		}
		sum.tally, sum.away = sum.tally.add(r.tally), r.away
	}

	n := &sum.tally
	fmt.Fprintf(table, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f", name, f.defence, n.perSecond(n.sent), n.perSecond(n.shed), n.perSecond(n.ringFull),
		n.perSecond(n.challenged), n.perSecond(n.forwarded))
	for i, class := range classes {
		if i > 0 {
			fmt.Fprint(table, "\t\t\t\t\t\t")
		}
		fmt.Fprintf(table, "\t%s\t%s\t%.1f %%\t%v\t%v\t%.0f %%\n", class.name, sum.flood[i], 100*sum.flood[i].of(sum.control[i]),
			calm[i].at(0.5), calm[i].at(0.99), 100*sum.away)
	}
	if f.overload {
		fmt.Fprintf(table, "\t\t\t\t\t\t\tnewcomers\t%s\t\t\t\t\n", sum.flood[len(classes)])
	}
	if sum.away > mostAway {
		t.Errorf("others had %.0f %% of the cores' time, so that the rest says little: run it again when nothing else runs", 100*sum.away)
	}
	for _, must := range []struct {
		what      string
		is, least float64
	}{
		{"of the requests on new connections succeeded", sum.flood[0].succeeded(), f.newOK},
		{"of the requests on long-lived connections succeeded", sum.flood[1].succeeded(), f.longOK},
		{"of the control's goodput is that of long-lived connections", sum.flood[1].of(sum.control[1]), f.longWhole},
	} {
		if must.is < must.least {
			t.Errorf("%.2f %% %s, want %.2f %%", 100*must.is, must.what, 100*must.least)
		}
	}
	s.down()
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
