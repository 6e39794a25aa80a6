//go:build linux

package cost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/bench/rig"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/singlestep"
)

// Case is what is forwarded, and how.
type Case struct {
	Mode   string `json:"mode"`   // swap (a bare swap of MAC addresses), ipip, l2, gue or nat
	Family string `json:"family"` // v4 or v6
	Mix    string `json:"mix"`    // one of Mixes
	Flows  int    `json:"flows"`  // that have a word in the table
	Batch  int    `json:"batch"`  // frames that the worker finds when it looks, 1 to 64
	// Batches is how many are counted, after as many without.
	Batches int `json:"batches"`
}

// Mixes are what the packets can be:
//   - hits: of flows that have an established word, which is of the present tick of the table's clock
//   - renewed: likewise, each the first of its flow within a tick, so that the word is written
//   - misses: SYNs of unknown flows, which leave no word
//   - new: SYNs of unknown flows, and in the next batch their ACKs, which insert: two packets a flow
//   - evict: as new, in a table that is full
//   - cookie, challenge: SYNs of unknown flows that are answered so
//   - limits: hits, each counted against a limit of its source
//   - replies: from backends to clients, only with nat
var Mixes = []string{"hits", "renewed", "misses", "new", "evict", "cookie", "challenge", "limits", "replies"}

// Swap is the mode that is no forwarding: a bare swap of MAC addresses.
const Swap = "swap"

var modes = map[string]forwarder.Mode{"l2": forwarder.L2, "ipip": forwarder.IPIP, "gue": forwarder.GUE, "nat": forwarder.NAT}

// tickTime is that of the flow table's clock.
const tickTime = time.Duration(1 << 31)

func (c *Case) validate() error {
	switch {
	case modes[c.Mode] == 0 && c.Mode != "l2" && c.Mode != Swap:
		return fmt.Errorf("mode %q: expected swap, ipip, l2, gue or nat", c.Mode)
	case !slices.Contains(Mixes, c.Mix):
		return fmt.Errorf("mix %q: expected one of %s", c.Mix, strings.Join(Mixes, ", "))
	case c.Mix == "replies" && c.Mode != "nat":
		return fmt.Errorf("mix replies with mode %s: only nat has replies", c.Mode)
	case c.Batch < 1 || c.Batch > 64:
		return fmt.Errorf("a batch of %d: expected 1 to 64", c.Batch)
	case c.Flows < 64 || c.Flows > 10_000_000:
		return fmt.Errorf("%d flows: expected 64 to 10,000,000", c.Flows)
	case c.Batches < 1 || c.Batches > 1000:
		return fmt.Errorf("%d batches: expected 1 to 1000", c.Batches)
	}
	return nil
}

// name is the case in words, for errors.
func (c *Case) name() string { return fmt.Sprintf("%s, %s, %s", c.Mode, c.Family, c.Mix) }

// Count starts this executable with arguments, which must lead to [Child], and the case as a last one, and returns what the case
// executed.
func Count(ctx context.Context, c Case, arguments ...string) (*Instructions, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	p, err := singlestep.Run(ctx, append(arguments, string(text))...)
	if err != nil {
		return nil, fmt.Errorf("count the instructions of %s: %w", c.name(), err)
	}
	i := summarize(c, p)
	if i.Counter, err = hardware(c); err != nil {
		return nil, fmt.Errorf("count the instructions of %s: %w", c.name(), err)
	}
	return i, nil
}

// hardware has the machine's own counter count the same in this process, as a check of the other way; 0 if there is none.
func hardware(c Case) (perPacket float64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	counter, err := singlestep.OpenCounter()
	if err != nil {
		return 0, nil
	}
	defer counter.Close()
	p, err := newPlayer(&c)
	if err != nil {
		return 0, err
	}
	defer p.rig.Close()
	if err := p.warm(); err != nil {
		return 0, err
	}
	count := func(f func()) (uint64, error) {
		before, err := counter.Read()
		if err != nil {
			return 0, err
		}
		f()
		after, err := counter.Read()
		return after - before, err
	}
	sum := uint64(0)
	for range c.Batches {
		var n, reading uint64
		var counted error
		if err := p.batch(func(f func()) { n, counted = count(f) }); err != nil {
			return 0, err
		}
		if reading, err = count(func() {}); err != nil || counted != nil {
			return 0, errors.Join(err, counted)
		}
		sum += n - reading
	}
	return float64(sum) / float64(c.Batch*c.Batches), nil
}

// Child is the process whose instructions are counted: it sets the case up, forwards, and exits.
func Child(text string) {
	singlestep.Serve(func(t *singlestep.Tracee) error {
		var c Case
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			return fmt.Errorf("case %q: %w", text, err)
		}
		p, err := newPlayer(&c)
		if err != nil {
			return err
		}
		defer p.rig.Close()
		if err := p.warm(); err != nil {
			return err
		}
		if err := t.Attach(); err != nil {
			return err
		}
		for range c.Batches {
			if err := p.batch(t.Count); err != nil {
				return err
			}
		}
		return nil
	})
}

// warmFrames is how many frames it takes until each frame and each entry of the rings has been used.
const warmFrames = 4096

// player forwards the packets of a case.
type player struct {
	*Case
	rig     *rig.Rig
	forward func()
	known   int    // flows that the table was given
	unknown uint32 // the last flow that nobody has seen
	played  int    // batches

	// What clock is made of.
	machine func() int64
	began   int64
	passed  time.Duration
}

// clock is the engine's. It reads the machine's, as the daemon does, but goes on only by what is passed: how many flows have their
// word renewed would depend on how long it takes to count.
func (p *player) clock() int64 { return min(p.machine(), p.began) + int64(p.passed) }

func newPlayer(c *Case) (*player, error) {
	machine, err := forwarder.NewClock()
	if err != nil {
		return nil, err
	}
	p := &player{Case: c, known: c.Flows, machine: machine, began: machine()}
	o := rig.Options{Family: c.Family, Mode: modes[c.Mode], Flows: c.Flows, Clock: p.clock}
	switch c.Mix {
	case "new": // those that are new find room
		o.Flows += c.Batch*c.Batches + 2*warmFrames
	case "cookie":
		o.Defence = forwarder.DefenceCookie
	case "challenge":
		o.Defence = forwarder.DefenceChallenge
	case "limits":
		o.Limits.PerSource = forwarder.Rates{Packets: 100_000_000, Burst: time.Second}
	case "evict": // more than fit: the rest take others' words
		p.known = 4 * c.Flows
	}
	if p.rig, err = rig.New(o); err != nil {
		return nil, err
	}
	p.forward = p.poll
	if c.Mode == Swap {
		p.forward = p.rig.Swap
	}
	p.unknown = uint32(p.known)
	return p, nil
}

// warm fills the table, and plays before anything is counted.
func (p *player) warm() error {
	if err := p.fill(); err != nil {
		return err
	}
	if p.Mix == "hits" || p.Mix == "limits" {
		p.passed += tickTime // what is seen in a second tick is established
		if err := p.fill(); err != nil {
			return err
		}
	}
	for range max(p.Batches, warmFrames/p.Batch) &^ 1 { // SYNs are next
		if err := p.batch(func(f func()) { f() }); err != nil {
			return err
		}
	}
	return nil
}

// fill plays a packet of each flow that is known.
func (p *player) fill() error {
	for first := 0; first < p.known; first += 64 {
		frame := func(i int) []byte { return p.rig.Frame(uint32((first+i)%p.known), rig.ACK, false) }
		if err := p.pass(64, frame, p.poll); err != nil {
			return err
		}
	}
	return nil
}

// batch plays one batch; call is given what forwards it.
func (p *player) batch(call func(func())) error {
	n, flags := p.played, byte(rig.SYN)
	p.played++
	switch p.Mix {
	case "new", "evict":
		if n%2 == 1 {
			flags = rig.ACK
			break
		}
		fallthrough
	case "misses", "cookie", "challenge":
		p.unknown += uint32(p.Batch)
	default:
		if p.Mix == "renewed" {
			p.passed += 3 * tickTime
		}
		// Flows in an order that has nothing to do with that of their words.
		return p.pass(p.Batch, func(i int) []byte {
			return p.rig.Frame(uint32((n*p.Batch+i)*7919%p.Flows), rig.ACK, p.Mix == "replies")
		}, func() { call(p.forward) })
	}
	return p.pass(p.Batch, func(i int) []byte { return p.rig.Frame(p.unknown+uint32(i), flags, false) }, func() { call(p.forward) })
}

func (p *player) poll() { p.rig.Worker.Poll(0) }

// pass has n frames forwarded, and checks that each was.
func (p *player) pass(n int, frame func(i int) []byte, forward func()) error {
	frames := make([][]byte, n)
	for i := range frames {
		frames[i] = frame(i)
	}
	p.rig.NIC.DeliverBatch(0, frames)
	forward()
	if sent := p.rig.NIC.Collect(0, nil); sent != n {
		return fmt.Errorf("%d of %d frames were sent", sent, n)
	}
	return nil
}
