package probe

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// descriptors is how many this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// 2,000 probes that fail in every way leave no descriptor and no goroutine.
func TestNothingIsLeft(t *testing.T) {
	p := New(Options{})
	const timeout = 100 * time.Millisecond
	var targets []*Target
	for _, addr := range []netip.AddrPort{refusing(t), full(t), serve(t, silent), serve(t, closesAtOnce), serve(t, resetsLate), serve(t, garbage), serve(t, endless)} {
		for _, check := range streams {
			check.Timeout = config.Duration(timeout)
			targets = append(targets, target(addr, check))
		}
	}
	web := httptest.NewUnstartedServer(http.NotFoundHandler()) // answers well, if not what is wanted
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetHTTP1(true)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Start()
	t.Cleanup(web.Close)
	for _, kind := range []config.CheckType{config.CheckHTTP, config.CheckHTTP2, config.CheckGRPC} {
		targets = append(targets, target(netip.MustParseAddrPort(web.Listener.Addr().String()), config.Check{Type: kind}))
	}
	for _, c := range []config.Check{
		{Type: config.CheckUDP}, {Type: config.CheckDNS, Query: &config.Query{Name: "example.org", Type: "A"}},
	} {
		c.Timeout = config.Duration(timeout)
		targets = append(targets, target(serveUDP(t, mute), c), target(refusingUDP(t), c))
	}
	slow := shell("sleep 9")
	slow.Check.Timeout = config.Duration(timeout)
	targets = append(targets, shell("exit 1"), slow)
	round := func(n int) {
		var wg sync.WaitGroup
		for i := range n {
			to := targets[i%len(targets)]
			if to.Check.Type == config.CheckExec && i > 3*len(targets) {
				continue // a process each: a few will do
			}
			wg.Go(func() {
				if r := p.Probe(t.Context(), to); r.Good {
					t.Errorf("good: %+v of %+v", r, to.Check)
				}
			})
			if i%100 == 99 {
				wg.Wait()
			}
		}
		wg.Wait()
	}
	// settled waits until the servers have seen the ends of their connections.
	settled := func(goroutines, files int) (int, int) {
		for deadline := time.Now().Add(ample); ; time.Sleep(10 * time.Millisecond) {
			g, d := runtime.NumGoroutine(), descriptors(t)
			if g <= goroutines && d <= files || time.Now().After(deadline) {
				return g, d
			}
		}
	}
	round(len(targets)) // what is made once
	time.Sleep(2 * timeout)
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	round(2000)
	if g, d := settled(goroutines, files); g > goroutines || d > files {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d descriptors, after %d and %d\n%s", g, d, goroutines, files, stacks[:runtime.Stack(stacks, true)])
	}
}
