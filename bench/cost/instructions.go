//go:build linux

package cost

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

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
//   - hits: of flows that have a word
//   - renewed: likewise, each the first of its flow within a tick of the table's clock, so that the word is written
//   - misses: SYNs of unknown flows, which leave no word
//   - new: SYNs of unknown flows, and in the next batch their ACKs, which insert: two packets a flow
//   - evict: as new, in a table that is full
//   - cookie, challenge: SYNs of unknown flows that are answered so
//   - limits: hits, each counted against a limit of its source
//   - replies: from backends to clients, only with nat
var Mixes = []string{"hits", "renewed", "misses", "new", "evict", "cookie", "challenge", "limits", "replies"}

// tickTime is that of the flow table's clock.
const tickTime = time.Duration(1 << 31)

func (c *Case) validate() error {
	switch {
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
	return summarize(c, p), nil
}

// Child is the process whose instructions are counted: it sets the case up, forwards, and exits.
func Child(text string) {
	singlestep.Serve(func(t *singlestep.Tracee) error {
		var c Case
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			return fmt.Errorf("case %q: %w", text, err)
		}
		r, err := newRig(&c)
		if err != nil {
			return err
		}
		defer r.close()
		return r.play(&c, t)
	})
}

// play forwards the batches of a case.
func (r *rig) play(c *Case, t *singlestep.Tracee) error {
	known := c.Flows
	if c.Mix == "evict" { // more than fit: the rest take others' words
		known = 4 * c.Flows
	}
	for first := 0; first < known; first += 64 { // each flow's first packet
		if err := r.pass(64, func(i int) []byte { return r.frame(uint32((first+i)%known), flagACK, false) }, r.poll); err != nil {
			return err
		}
	}
	forward := r.poll
	if c.Mode == "swap" {
		forward = r.swapMACs
	}
	unknown := uint32(known)
	batch := func(n int, forward func()) error {
		switch c.Mix {
		case "misses", "cookie", "challenge":
			unknown += uint32(c.Batch)
			return r.pass(c.Batch, func(i int) []byte { return r.frame(unknown+uint32(i), flagSYN, false) }, forward)
		case "new", "evict":
			flags := byte(flagACK)
			if n%2 == 0 {
				flags = flagSYN
				unknown += uint32(c.Batch)
			}
			return r.pass(c.Batch, func(i int) []byte { return r.frame(unknown+uint32(i), flags, false) }, forward)
		case "renewed":
			r.passed += 3 * tickTime
		}
		// Flows in an order that has nothing to do with that of their words.
		return r.pass(c.Batch, func(i int) []byte {
			return r.frame(uint32((n*c.Batch+i)*7919%c.Flows), flagACK, c.Mix == "replies")
		}, forward)
	}
	// As many as are counted, at least as many as it takes for each frame of the rings to have been used, and an even number.
	warm := max(c.Batches, 4096/c.Batch) &^ 1
	for n := range warm {
		if err := batch(n, forward); err != nil {
			return err
		}
	}
	if err := t.Attach(); err != nil {
		return err
	}
	for n := range c.Batches {
		if err := batch(warm+n, func() { t.Count(forward) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) poll() { r.worker.Poll(0) }

// pass has n frames forwarded, and checks that each was.
func (r *rig) pass(n int, frame func(i int) []byte, forward func()) error {
	frames := make([][]byte, n)
	for i := range frames {
		frames[i] = frame(i)
	}
	r.nic.DeliverBatch(0, frames)
	forward()
	if sent := r.nic.Collect(0, nil); sent != n {
		return fmt.Errorf("%d of %d frames were sent", sent, n)
	}
	return nil
}
