//go:build linux

package users

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// startTime is how long a program may take beyond the time that it is asked to measure.
const startTime = 10 * time.Second

// program is something that has to be installed.
type program struct {
	name   string // looked up in PATH, or the path of a file
	debian string // the package that has it
}

var (
	nginx       = program{"nginx", "nginx-light"}
	nginxStream = program{"/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"}
	haproxy     = program{"haproxy", "haproxy"}
	nft         = program{"nft", "nftables"}
	wrk         = program{"wrk", "wrk"}
	h2load      = program{"h2load", "nghttp2-client"}
	iperf3      = program{"iperf3", "iperf3"}
)

func (p program) installed() bool {
	if strings.HasSuffix(p.name, ".so") {
		_, err := os.Stat(p.name)
		return err == nil
	}
	_, err := exec.LookPath(p.name)
	return err == nil
}

// needs says what is missing of programs; empty: nothing.
func needs(programs []program) string {
	for _, p := range programs {
		if !p.installed() {
			return "needs Debian package " + p.debian
		}
	}
	return ""
}

// sample is one measurement of one system.
type sample struct {
	value  float64
	work   float64  // how much was done, in the measure's unit of work
	errors int      // requests that failed
	kinds  []string // how they did, where that is known
	extra  map[string]float64
}

// measure is one thing that is measured of all systems.
type measure struct {
	name, title, metric, unit string
	higher                    bool
	needs                     []program
	work                      string // what CPU time is divided by; empty: it tells nothing
	paced                     bool   // at a rate that follows from the requests
	added                     string // the extra that says how much larger the value is than the reference's; empty: none
	notes                     []string
	run                       func(ctx context.Context, r *rig, s *running, d time.Duration, rate float64) (sample, error)
}

const cpuNote = "cpu_seconds is how long the CPU of system and router was busy, also with what else the machine did there; " +
	"process_seconds is the CPU time of the system's processes, softirq_seconds that CPU's in softirq. The kernel does not tell these " +
	"two apart exactly, so they are not to be added."

const closedNote = "The client waits for answers and keeps both cores busy, so a row can be above direct: what comes in larger " +
	"batches probably costs clients and backends fewer wake-ups a request."

var measures = []measure{
	{
		name: "connections", metric: "new connections", unit: "1/s", higher: true,
		title: fmt.Sprintf("HTTP requests of %d bytes, each on a connection of its own, %d at a time (wrk)", pageSize, connections),
		needs: []program{nginx, wrk}, work: "1000_requests", notes: []string{closedNote, cpuNote},
		run: func(ctx context.Context, r *rig, s *running, d time.Duration, _ float64) (sample, error) {
			return r.wrk(ctx, s, d, "-H", "Connection: close")
		},
	},
	{
		name: "requests", metric: "requests", unit: "1/s", higher: true,
		title: fmt.Sprintf("HTTP requests of %d bytes on %d connections that stay (wrk)", pageSize, connections),
		needs: []program{nginx, wrk}, work: "1000_requests", notes: []string{closedNote, cpuNote},
		run: func(ctx context.Context, r *rig, s *running, d time.Duration, _ float64) (sample, error) {
			return r.wrk(ctx, s, d)
		},
	},
	{
		name: "throughput", metric: "throughput", unit: "Gbit/s", higher: true,
		title: "One TCP connection from client to backend (iperf3), the direction that passes every balancer",
		needs: []program{iperf3}, work: "gigabyte", notes: []string{cpuNote},
		run: func(ctx context.Context, r *rig, s *running, d time.Duration, _ float64) (sample, error) {
			return r.iperf3(ctx, s, d)
		},
	},
	{
		name: "download", metric: "throughput", unit: "Gbit/s", higher: true,
		title: "One TCP connection from backend to client (iperf3 -R); with sluice-ipip it goes past the balancer",
		needs: []program{iperf3}, work: "gigabyte", notes: []string{cpuNote},
		run: func(ctx context.Context, r *rig, s *running, d time.Duration, _ float64) (sample, error) {
			return r.iperf3(ctx, s, d, "-R")
		},
	},
	{
		name: "idle", metric: "p99 latency", unit: "µs",
		title: "Latency of HTTP requests on one connection, one after the other, with no other load (h2load): 99th percentile",
		needs: []program{nginx, h2load}, added: "added_p99",
		run: func(ctx context.Context, r *rig, s *running, d time.Duration, _ float64) (sample, error) {
			return r.h2load(ctx, s, d)
		},
	},
	{
		name: "latency", metric: "p99 latency", unit: "µs",
		title: fmt.Sprintf("Latency of HTTP requests at a fixed rate on %d connections, counted from when each was due: "+
			"99th percentile", connections),
		needs: []program{nginx, wrk}, paced: true, added: "added_p99", work: "1000_requests", notes: []string{cpuNote},
		run: func(ctx context.Context, r *rig, s *running, d time.Duration, rate float64) (sample, error) {
			c := client{ns: r.net.Client, core: r.userCore, to: s.web, connections: connections}
			took, failed, err := c.run(ctx, rate, d)
			if err != nil {
				return sample{}, err
			}
			return latencySample(took, failed)
		},
	},
}

// sample takes one measurement, and the CPU time that it cost.
func (r *rig) sample(ctx context.Context, m *measure, s *running, d time.Duration, rate float64) (sample, error) {
	if err := ctx.Err(); err != nil {
		return sample{}, err
	}
	before, err := readCost(r.systemCore, s.process)
	if err != nil {
		return sample{}, err
	}
	got, err := m.run(ctx, r, s, d, rate)
	if err != nil {
		return sample{}, err
	}
	if s.process != nil && s.process.Ended() {
		return sample{}, fmt.Errorf("%s has ended; its output:\n%s", s.process, s.process.Output())
	}
	after, err := readCost(r.systemCore, s.process)
	if err != nil {
		return sample{}, err
	}
	if got.extra == nil {
		got.extra = map[string]float64{}
	}
	if m.work != "" && got.work > 0 {
		got.extra["cpu_seconds_per_"+m.work] = (after.busy - before.busy) / got.work
		got.extra["softirq_seconds_per_"+m.work] = (after.softirq - before.softirq) / got.work
		if s.process != nil {
			got.extra["process_seconds_per_"+m.work] = (after.process - before.process) / got.work
		}
	}
	return got, nil
}

// wrkScript has wrk print what it found in one line; it costs nothing while wrk measures.
const wrkScript = `done = function(s, latency)
  local e = s.errors
  io.write(string.format("` + wrkMark + ` %d %d %d %d %d %d %d\n",
    s.requests, s.duration, e.connect, e.read, e.write, e.status, e.timeout))
end
`

const wrkMark = "requests, microseconds, errors of connect, read, write, status, timeout:"

// wrk measures requests a second.
func (r *rig) wrk(ctx context.Context, s *running, d time.Duration, args ...string) (sample, error) {
	if err := r.write("done.lua", wrkScript); err != nil {
		return sample{}, err
	}
	args = append([]string{"-t", "1", "-c", strconv.Itoa(connections), "-d", seconds(d), "-s", r.path("done.lua")}, args...)
	out, err := r.run(ctx, d+startTime, wrk.name, append(args, fmt.Sprintf("http://%v/", s.web))...)
	if err != nil {
		return sample{}, err
	}
	return parseWrk(out)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%d", d/time.Second) }

func parseWrk(out string) (sample, error) {
	_, line, ok := strings.Cut(out, wrkMark)
	var requests, micros int
	var failed [5]int
	if !ok {
		return sample{}, fmt.Errorf("wrk printed no line %q:\n%s", wrkMark, out)
	}
	_, err := fmt.Sscan(line, &requests, &micros, &failed[0], &failed[1], &failed[2], &failed[3], &failed[4])
	if err != nil || micros <= 0 {
		return sample{}, fmt.Errorf("wrk printed %q, expected seven numbers: %w", line, err)
	}
	s := sample{value: float64(requests) / (float64(micros) / 1e6), work: float64(requests) / 1000}
	for i, kind := range []string{"to connect", "to read", "to write", "with a bad status", "too late (2 s)"} {
		if failed[i] > 0 {
			s.errors += failed[i]
			s.kinds = append(s.kinds, fmt.Sprintf("%d %s", failed[i], kind))
		}
	}
	return s, nil
}

// iperf3 measures throughput.
func (r *rig) iperf3(ctx context.Context, s *running, d time.Duration, args ...string) (sample, error) {
	to, port := s.bulk.Addr().String(), strconv.Itoa(int(s.bulk.Port()))
	args = append([]string{"-c", to, "-p", port, "-t", seconds(d), "-J", "--connect-timeout", "3000"}, args...)
	out, err := r.run(ctx, d+startTime, iperf3.name, args...)
	if err != nil {
		return sample{}, err
	}
	return parseIperf3(out)
}

func parseIperf3(out string) (sample, error) {
	var result struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Bytes float64 `json:"bytes"`
				Rate  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sent struct {
				Retransmits float64 `json:"retransmits"`
			} `json:"sum_sent"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return sample{}, fmt.Errorf("iperf3's JSON: %w\n%s", err, out)
	}
	if result.Error != "" || result.End.Received.Bytes == 0 {
		return sample{}, fmt.Errorf("iperf3: nothing was received: %s", result.Error)
	}
	return sample{value: result.End.Received.Rate / 1e9, work: result.End.Received.Bytes / 1e9,
		extra: map[string]float64{"retransmits": result.End.Sent.Retransmits}}, nil
}

// h2load measures requests one after the other.
func (r *rig) h2load(ctx context.Context, s *running, d time.Duration) (sample, error) {
	file := r.path("h2load.log")
	_ = os.Remove(file) // it adds to a file that there is
	_, err := r.run(ctx, d+startTime, h2load.name, "--h1", "-c", "1", "-t", "1", "-D", seconds(d), "--log-file", file,
		fmt.Sprintf("http://%v/", s.web))
	if err != nil {
		return sample{}, err
	}
	log, err := os.ReadFile(file)
	if err != nil {
		return sample{}, err
	}
	took, failed, err := parseH2load(string(log))
	if err != nil {
		return sample{}, err
	}
	return latencySample(took, failed)
}

// parseH2load reads a log: when a request began, its status, and the microseconds that it took.
func parseH2load(log string) (took []time.Duration, failed int, err error) {
	for line := range strings.Lines(log) {
		f := strings.Fields(line)
		if len(f) < 3 {
			return nil, 0, fmt.Errorf("h2load's log: found %q, expected three columns", line)
		}
		micros, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			return nil, 0, fmt.Errorf("h2load's log: %w", err)
		}
		if f[1] != "200" {
			failed++
			continue
		}
		took = append(took, time.Duration(micros)*time.Microsecond)
	}
	return took, failed, nil
}

// latencySample makes a sample of how long each request took; the percentiles are exact, of all of them.
func latencySample(took []time.Duration, failed int) (sample, error) {
	if len(took) == 0 {
		return sample{}, errors.New("no request was answered")
	}
	slices.Sort(took)
	s := sample{work: float64(len(took)) / 1000, errors: failed, extra: map[string]float64{}}
	for _, p := range []struct {
		name  string
		share float64
	}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99_9", 0.999}, {"p99_99", 0.9999}} {
		if float64(len(took))*(1-p.share) < 1-1e-9 {
			break // that would be the largest alone
		}
		s.extra[p.name] = percentile(took, p.share)
	}
	s.value = percentile(took, 0.99)
	return s, nil
}

// percentile returns in microseconds what a share of the sorted times do not exceed.
func percentile(sorted []time.Duration, share float64) float64 {
	i := max(0, int(share*float64(len(sorted))+0.999999)-1)
	return float64(sorted[min(i, len(sorted)-1)]) / float64(time.Microsecond)
}
