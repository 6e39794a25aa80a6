//go:build linux && health

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// Ten thousand backends are as many addresses of one namespace; through the tunnel a thousand, since an agent takes packets to no
// more. Ten services have a thousand each, and ports of their own: what is probed alike is probed once.
const (
	scaleBackends = 10_000
	scaleServices = 10
	scaleEach     = scaleBackends / scaleServices
	scalePort     = 8080 // the first service's
)

var scaleNetwork = netip.MustParsePrefix("10.128.0.0/18")

// scaleForwarder is the control API as far as healthd needs it.
type scaleForwarder struct {
	targets control.Targets

	mu      sync.Mutex
	state   map[string]control.State // by backend
	made    map[string]uint64        // probes, by backend, as last told: each ten seconds
	reports int
}

func (f *scaleForwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer any
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/health/targets":
		if r.URL.Query().Get("boot") == f.targets.Boot {
			wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
			select {
			case <-r.Context().Done():
			case <-time.After(wait):
			}
		}
		answer = f.targets
	case "PUT /v1/health":
		var report control.HealthReport
		if err := json.NewDecoder(r.Body).Decode(&report); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.mu.Lock()
		f.reports++
		for _, b := range report.Backends {
			f.state[b.Backend] = b.State
		}
		for _, p := range report.Probes {
			f.made[p.Backend] = p.Good + p.Bad
		}
		f.mu.Unlock()
		answer = control.HealthAnswer{Boot: f.targets.Boot, Generation: f.targets.Generation}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// up is how many backends are.
func (f *scaleForwarder) up() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.state {
		if s == control.StateUp {
			n++
		}
	}
	return n
}

// TestHealthScale measures what healthd needs for ten thousand backends, each probed every two seconds over TCP, or every ten by what
// costs more: the server is on the same two cores.
func TestHealthScale(t *testing.T) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "CHECK\tVIA\tINTERVAL\tPROBES/S\tPART OF A CORE\tCPU A PROBE\tRSS\tREPORTS/S\n")
	for _, c := range []struct {
		check    config.CheckType
		via      config.Via
		interval time.Duration
		mostCPU  float64 // of a core; 0: it is only told
		mostSize int     // bytes; likewise
	}{
		{config.CheckTCP, config.ViaDirect, 2 * time.Second, 0.5, 200e6},
		{config.CheckHTTP, config.ViaDirect, 10 * time.Second, 0, 0},
		{config.CheckTCP, config.ViaTunnel, 10 * time.Second, 0, 0},
	} {
		t.Run(fmt.Sprintf("%s, %s", c.check, c.via), func(t *testing.T) {
			share, size := healthScale(t, w, c.check, c.via, c.interval)
			if c.mostCPU > 0 && share >= c.mostCPU {
				t.Errorf("%.0f %% of a core, want less than %.0f %%", 100*share, 100*c.mostCPU)
			}
			if c.mostSize > 0 && size >= c.mostSize {
				t.Errorf("%d MB, want less than %d MB", size/1e6, c.mostSize/1e6)
			}
		})
	}
	w.Flush()
	t.Logf("%d backends\n%s", scaleBackends, &text)
}

func healthScale(t *testing.T, table *tabwriter.Writer, check config.CheckType, via config.Via, interval time.Duration) (share float64, size int) {
	const (
		measured = 30 * time.Second
		settle   = 12 * time.Second // until statistics of all probes have been told
		ready    = 2 * time.Minute
	)
	env := testenv.ForTest(t)
	node, err := env.Namespace("node")
	must(t, err)
	backend, err := env.Namespace("backend")
	must(t, err)
	must(t, env.Veth(testenv.End{Namespace: node, Name: "eth0", MTU: testenv.LANMTU}, testenv.End{Namespace: backend, Name: "eth0", MTU: testenv.LANMTU}, 1))
	own, other := netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("10.0.0.11/24")
	must(t, node.AddAddr("eth0", own))
	must(t, backend.AddAddr("eth0", other))
	must(t, node.AddRoute(testenv.Route{Dst: scaleNetwork, Via: []netip.Addr{other.Addr()}}))
	must(t, node.AddRoute(testenv.Route{Dst: netip.PrefixFrom(testVIP4, 32), Kind: testenv.Blackhole})) // as the daemon does
	if out, err := backend.Run(5*time.Second, testenv.Cmd{Path: "ip", Args: []string{"route", "add", "local", scaleNetwork.String(), "dev", "lo"}}); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := t.TempDir()
	var addresses []netip.Addr
	for a := scaleNetwork.Addr(); len(addresses) < scaleBackends; {
		a = a.Next()
		addresses = append(addresses, a)
	}
	if via == config.ViaTunnel {
		addresses = addresses[:scaleEach]
		for _, a := range addresses {
			must(t, backend.AddAddr("eth0", netip.PrefixFrom(a, 32)))
		}
		agent, err := backend.Start(testenv.Cmd{Path: filepath.Join(bin, "sluice-agent"), Args: []string{"run", "--interface", "eth0", "--vip", testVIP4.String(), "--state-dir", filepath.Join(dir, "agent")}})
		must(t, err)
		must(t, agent.WaitOutput(10*time.Second, "taking packets"))
	}
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	defer server.Close()
	f := &scaleForwarder{state: map[string]control.State{}, made: map[string]uint64{}, targets: control.Targets{Boot: "scale", Generation: 1}}
	for i := range scaleServices {
		port := uint16(scalePort + i)
		l, err := backend.Listen("tcp4", fmt.Sprintf(":%d", port))
		must(t, err)
		go func() { _ = server.Serve(l) }()
		service := control.TargetService{
			Name: fmt.Sprintf("web%d", i+1), VIP: testVIP4, Protocol: "tcp", Forward: "ipip", Scheduler: "maglev", Passive: config.Passive{Mode: config.PassiveOff},
			Check: &config.Check{Type: check, Port: port, Via: via, Jitter: 10, Rise: usual.rise, Fall: usual.fall, Expect: config.Expect{Limit: 64 << 10},
				Interval: config.Duration(interval), FastInterval: config.Duration(interval), Timeout: config.Duration(usual.timeout)},
		}
		if check.HTTP() {
			service.Check.Path, service.Check.Expect.Status = "/", config.Ranges{"200-399"}
		}
		for j := range scaleEach {
			n := i*scaleEach + j
			service.Backends = append(service.Backends, control.TargetBackend{Name: fmt.Sprintf("web-%d", n+1), Address: addresses[n%len(addresses)]})
		}
		f.targets.Services = append(f.targets.Services, service)
	}
	socket := filepath.Join(dir, "control.sock")
	control, err := net.Listen("unix", socket)
	must(t, err)
	api := &http.Server{Handler: f}
	defer api.Close()
	go func() { _ = api.Serve(control) }()

	healthd, err := node.Start(testenv.Cmd{Path: filepath.Join(bin, "sluice-healthd"), Args: []string{"run", "--socket", socket}})
	must(t, err)
	must(t, healthd.WaitUntil(ready, "all backends are up", func() error {
		time.Sleep(100 * time.Millisecond) // counting is dear
		if n := f.up(); n != scaleBackends {
			return fmt.Errorf("%d are", n)
		}
		return nil
	}))
	time.Sleep(settle)
	count := func() (time.Time, time.Duration, uint64, int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		probes := uint64(0)
		for _, n := range f.made {
			probes += n
		}
		return time.Now(), processTime(t, healthd.PID()), probes, f.reports
	}
	start, cpu0, probes0, reports0 := count()
	time.Sleep(measured)
	end, cpu1, probes1, reports1 := count()
	took := end.Sub(start)
	share = (cpu1 - cpu0).Seconds() / took.Seconds()
	size = residentSize(t, healthd.PID())
	n := probes1 - probes0
	fmt.Fprintf(table, "%s\t%s\t%v\t%.0f\t%.1f %%\t%v\t%.0f MB\t%.1f\n", check, via, interval, float64(n)/took.Seconds(), 100*share,
		((cpu1 - cpu0) / time.Duration(max(n, 1))).Round(time.Microsecond), float64(size)/1e6, float64(reports1-reports0)/took.Seconds())
	if n := f.up(); n != scaleBackends {
		t.Errorf("%d of %d backends are up", n, scaleBackends)
	}
	if least := 0.8 * scaleBackends / interval.Seconds() * took.Seconds(); float64(n) < least {
		t.Errorf("%d probes in %v, want %.0f", n, took, least)
	}
	must(t, healthd.Stop(10*time.Second))
	return share, size
}

// processTime is what a process has used of all cores.
func processTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	const tick = 10 * time.Millisecond // USER_HZ is 100
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	_, fields, _ := strings.Cut(string(stat), ") ") // the name may have spaces
	used := time.Duration(0)
	for _, field := range strings.Fields(fields)[11:13] { // utime and stime, 14 and 15 of proc_pid_stat(5)
		n, err := strconv.Atoi(field)
		must(t, err)
		used += time.Duration(n) * tick
	}
	return used
}

// residentSize is the memory that a process has, in bytes.
func residentSize(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			must(t, err)
			return n << 10
		}
	}
	must(t, errors.New("no VmRSS"))
	return 0
}
