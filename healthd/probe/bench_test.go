package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// cpu is the processor time that this process has had.
func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// elsewhere is a listener of another process, whose work is not counted: this program, run again.
func elsewhere(b *testing.B) netip.AddrPort {
	b.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestListenForBenchmark$")
	cmd.Env = append(os.Environ(), "SLUICE_BENCHMARK_LISTENER=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var text string
	if _, err := fmt.Fscanln(out, &text); err != nil {
		b.Fatal(err)
	}
	return netip.MustParseAddrPort(text)
}

// TestListenForBenchmark is not a test, but the process of elsewhere.
func TestListenForBenchmark(t *testing.T) {
	if os.Getenv("SLUICE_BENCHMARK_LISTENER") == "" {
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			silent(c)
			c.Close()
		}()
	}
}

// BenchmarkConnect compares a probe by plain connect with what net.Dialer makes of the same, in turns, a hundred at once. The
// kernel's work on loopback, both ends of it, is in cpu-µs/probe.
func BenchmarkConnect(b *testing.B) {
	addr := elsewhere(b)
	p := New(Options{})
	to := target(addr, config.Check{Type: config.CheckTCP, Timeout: config.Duration(time.Second)})
	dialer := net.Dialer{KeepAlive: -1}
	dialer.SetMultipathTCP(false)
	ways := []struct {
		name string
		do   func() error
	}{
		{"probe", func() error {
			if r := p.Probe(b.Context(), to); !r.Good {
				return fmt.Errorf("%+v", r)
			}
			return nil
		}},
		{"dialer", func() error {
			ctx, cancel := context.WithTimeout(b.Context(), time.Second)
			defer cancel()
			c, err := dialer.DialContext(ctx, "tcp", addr.String())
			if err != nil {
				return err
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			return c.Close()
		}},
	}
	spent := make([]time.Duration, len(ways))
	const turn = 1000
	rounds := (b.N + turn - 1) / turn
	b.ResetTimer()
	for range rounds {
		for i, way := range ways {
			start := cpu(b)
			at := make(chan struct{}, 100)
			var wg sync.WaitGroup
			for range turn {
				at <- struct{}{}
				wg.Go(func() {
					if err := way.do(); err != nil {
						b.Error(err)
					}
					<-at
				})
			}
			wg.Wait()
			spent[i] += cpu(b) - start
		}
	}
	for i, way := range ways {
		b.ReportMetric(float64(spent[i].Microseconds())/float64(rounds*turn), way.name+"-cpu-µs")
	}
}

// BenchmarkTenThousand probes 10,000 backends by plain connect every two seconds for ten seconds, as evenly as a scheduler would, and
// reports what share of one core that takes, and the memory.
func BenchmarkTenThousand(b *testing.B) {
	addr := elsewhere(b)
	p := New(Options{})
	to := target(addr, config.Check{Type: config.CheckTCP, Timeout: config.Duration(time.Second)})
	const backends, interval, length = 10_000, 2 * time.Second, 10 * time.Second
	for b.Loop() {
		var wg sync.WaitGroup
		var mu sync.Mutex
		failed, worst := 0, time.Duration(0)
		start := cpu(b)
		end := time.Now().Add(length)
		for i := range backends {
			wg.Go(func() {
				time.Sleep(interval * time.Duration(i) / backends)
				for every := time.NewTicker(interval); time.Now().Before(end); <-every.C {
					r := p.Probe(b.Context(), to)
					mu.Lock()
					if !r.Good {
						failed++
					}
					worst = max(worst, r.Latency)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		b.ReportMetric(100*float64(cpu(b)-start)/float64(length), "%core")
		b.ReportMetric(float64(failed), "failed")
		b.ReportMetric(float64(worst.Milliseconds()), "worst-ms")
	}
	runtime.GC()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if kb := 0; strings.HasPrefix(line, "VmHWM:") {
			if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(kb)/1024, "peak-MB")
		}
	}
}
