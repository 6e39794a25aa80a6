//go:build linux

package veth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/bench"
)

// Size is the length of frames, from the Ethernet header on without the checksum.
type Size struct {
	Name  string // "64", or "imix": 7 of 64 bytes, 4 of 594, 1 of 1,514
	bytes int    // 0: the mix
}

var smallest = Size{"64", 64}

// ParseSize reads a number of bytes, or "imix".
func ParseSize(text string) (Size, error) {
	if text == "imix" {
		return Size{Name: text}, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 64 || n > 1514 {
		return Size{}, fmt.Errorf("found %q, expected imix or a number of bytes from 64 to 1514", text)
	}
	return Size{text, n}, nil
}

// Setting is what traffic is like.
type Setting struct {
	Flows int
	Size  Size
}

// sample is what happened in some stretch of time.
type sample struct {
	sent, delivered uint64
	elapsed         time.Duration
	generator       time.Duration // for which the first core was busy, with whatever
	system          time.Duration // likewise the second
}

// rate is what was delivered, in packets a second.
func (s sample) rate() float64 { return float64(s.delivered) / s.elapsed.Seconds() }

// offered is what was sent, in packets a second.
func (s sample) offered() float64 { return float64(s.sent) / s.elapsed.Seconds() }

// loss is the fraction of what was sent that did not arrive. At the edges of a window frames under way are counted on one side
// only, so it is never taken as less than nothing.
func (s sample) loss() float64 {
	return max(0, 1-float64(s.delivered)/float64(max(s.sent, 1)))
}

// reading is the counters at one moment.
type reading struct {
	at              time.Time
	sent, delivered uint64
	busy            [2]time.Duration // of the generator's core and the system's
}

func (r *Rig) read(generators []*bench.Generator, c counter) (now reading, err error) {
	if now.busy, err = busy(r.cores); err != nil {
		return now, err
	}
	now.at = time.Now()
	for _, g := range generators {
		now.sent += g.Sent()
	}
	now.delivered, err = c.frames()
	return now, err
}

func (before reading) to(after reading) sample {
	return sample{
		sent: after.sent - before.sent, delivered: after.delivered - before.delivered, elapsed: after.at.Sub(before.at),
		generator: after.busy[0] - before.busy[0], system: after.busy[1] - before.busy[1],
	}
}

// How many packets a second a system is introduced to flows with, or more if that took longer than it may; and for how long that is
// tried again.
const (
	introduced   = 250_000
	mostOfFlows  = 5 * time.Second
	mostWarming  = 20 * time.Second
	enoughOfThem = 0.99
)

// warm sends one packet of each flow, at a pace that systems can take, again and again until nearly all arrive. What systems do
// about unknown flows when more comes than they can take is not what is measured here: the daemon sheds those of UDP, and needs
// seconds to stop that.
func (r *Rig) warm(ctx context.Context, s Setting, c counter) error {
	t := r.traffic(s)
	_, t.Stamp = c.(stopwatch)
	t.Count, t.Smooth = uint64(s.Flows), true
	t.Rate = max(introduced, uint64(float64(s.Flows)/mostOfFlows.Seconds()))
	for deadline := time.Now().Add(mostWarming); ; {
		before, err := c.frames()
		if err == nil {
			err = r.send(ctx, t)
		}
		if err == nil {
			err = pause(ctx, 20*time.Millisecond) // the last ones are under way
		}
		if err != nil {
			return err
		}
		after, err := c.frames()
		if err != nil || float64(after-before) >= enoughOfThem*float64(s.Flows) || time.Now().After(deadline) {
			return err
		}
	}
}

// send sends to the end.
func (r *Rig) send(ctx context.Context, t bench.Traffic) error {
	g, err := bench.StartGenerator(r.world, eth, t)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = g.Stop() })() // Wait tells its error
	return errors.Join(g.Wait(), ctx.Err())
}

// settling is how long a flood lasts before what happens counts.
const settling = 100 * time.Millisecond

// flood sends as fast as the kernel can, and takes a sample over a window.
func (r *Rig) flood(ctx context.Context, s Setting, c counter, window time.Duration) (got sample, err error) {
	if err := r.warm(ctx, s, c); err != nil {
		return got, err
	}
	t := r.traffic(s)
	_, t.Stamp = c.(stopwatch)
	t.Duration = settling + window + 5*time.Second
	var generators []*bench.Generator
	for _, core := range []int{r.cores.generator, r.cores.system}[:r.queues] {
		t.CPUs = []int{core}
		g, err := bench.StartGenerator(r.world, eth, t)
		if err != nil {
			return got, err
		}
		defer func() { err = errors.Join(err, g.Stop()) }()
		generators = append(generators, g)
	}
	if err := pause(ctx, settling); err != nil {
		return got, err
	}
	before, err := r.read(generators, c)
	if err != nil {
		return got, err
	}
	if err := pause(ctx, window); err != nil {
		return got, err
	}
	after, err := r.read(generators, c)
	return before.to(after), err
}

// trial sends smoothly at a rate for so long, and counts what arrives in the end, to the packet.
func (r *Rig) trial(ctx context.Context, s Setting, c counter, rate float64, length time.Duration) (t sample, err error) {
	tr := r.traffic(s)
	tr.Rate, tr.Smooth, tr.Stamp, tr.Duration = uint64(max(rate, 1)), true, true, length
	start, err := c.frames()
	if err != nil {
		return t, err
	}
	g, err := bench.StartGenerator(r.world, eth, tr)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, g.Stop()) }()
	if err := pause(ctx, length); err != nil {
		return t, err
	}
	// It has sent for its duration; the call under way takes some tenths of a second more, in which nothing is sent.
	t.elapsed = length
	if err := g.Wait(); err != nil {
		return t, err
	}
	t.sent = g.Sent()
	for last := uint64(0); ; last = t.delivered { // until nothing comes any more
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return t, err
		}
		n, err := c.frames()
		if err != nil {
			return t, err
		}
		if t.delivered = n - start; t.delivered == last {
			return t, nil
		}
	}
}

// busy returns for how long the cores have not been idle since the machine started, to the hundredth of a second.
func busy(c cores) (t [2]time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	for i, core := range []int{c.generator, c.system} {
		if t[i], err = busyOf(string(text), core); err != nil {
			return t, err
		}
	}
	return t, nil
}

// busyOf reads the line of a core in /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal, and two that
// are parts of the first.
func busyOf(stat string, core int) (time.Duration, error) {
	const tick, fields = 10 * time.Millisecond, 8
	name := fmt.Sprintf("cpu%d", core)
	for line := range strings.Lines(stat) {
		f := strings.Fields(line)
		if len(f) <= fields || f[0] != name {
			continue
		}
		var ticks int64
		for i, text := range f[1:fields] { // without steal
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read /proc/stat: %w", err)
			}
			if i != 3 && i != 4 {
				ticks += n
			}
		}
		return time.Duration(ticks) * tick, nil
	}
	return 0, fmt.Errorf("read /proc/stat: no core %d", core)
}
