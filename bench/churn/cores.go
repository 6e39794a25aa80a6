//go:build linux

package churn

import (
	"fmt"

	"github.com/sluice-lb/sluice/internal/affinity"
)

// cores is who runs where: the worker on a core of its own, all other threads of the process on the others.
type cores struct {
	before []int
	worker int
	note   string
}

// divideCores takes the last core that the process may use away from its threads; threads that come later inherit that. With one
// core there is nothing to divide.
func divideCores() (*cores, error) {
	c := new(cores)
	var err error
	if c.before, err = affinity.Allowed(); err != nil {
		return nil, err
	}
	last := len(c.before) - 1
	if last == 0 {
		c.note = "There was one core only: the worker shared it with everything else, and what it waited for was mostly that."
		return c, nil
	}
	c.worker = c.before[last]
	c.note = fmt.Sprintf("The worker ran on core %d, everything else of this process on the %d others; other programs may have run on each.", c.worker, last)
	return c, affinity.PinAll(c.before[:last]...)
}

// bindWorker binds the calling thread to the worker's core.
func (c *cores) bindWorker() {
	if len(c.before) > 1 {
		_ = affinity.Pin(c.worker) // it was a core of this process a moment ago
	}
}

// restore lets the threads run where they could before.
func (c *cores) restore() { _ = affinity.PinAll(c.before...) }
