//go:build linux

package forwarder

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/forwarder/steer"
)

// followOverload has the XDP program drop what nobody knows while the workers cannot take all. It sleeps until a ring is half
// full.
func (n *Node) followOverload(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.overload.pressed:
			n.shed(ctx)
		}
	}
}

// shed goes on until nothing is shed any more, and no ring has been half full for a while.
func (n *Node) shed(ctx context.Context) {
	tick := time.NewTicker(shedPeriod)
	defer tick.Stop()
	n.LookShed(0) // to compare with
	began := time.Now()
	last, pressed, behind := began, began, false
	var want []steer.Shed
	told := map[shedKey]bool{}
	for n.overload.lasts.Load() || behind || last.Sub(pressed) < shedCalm {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case <-n.overload.pressed:
			pressed = last
		default:
		}
		now := time.Now()
		list, changed := n.LookShed(now.Sub(last))
		last = now
		if changed {
			want = list
		}
		if !changed && !behind {
			continue
		}
		err := n.steer.SetShed(want)
		if err != nil && !behind {
			n.log.Warn("the node is overloaded, and the XDP program cannot be told what to drop", "error", err)
		}
		behind = err != nil
		n.tellShed(told)
	}
	if len(told) > 0 {
		packets := uint64(0)
		for _, classes := range n.shedCounts() {
			for _, c := range classes {
				packets += c
			}
		}
		n.log.Info("the overload is over", "lasted", last.Sub(began).Round(100*time.Millisecond), "shed", packets)
		n.tell(Notice{Text: fmt.Sprintf("the overload is over, after %v: %d packets were dropped in the XDP program",
			last.Sub(began).Round(100*time.Millisecond), packets)})
	}
}

// tellShed logs what is shed and was not told yet.
func (n *Node) tellShed(told map[shedKey]bool) {
	for _, s := range n.shedStats() {
		k := shedKey{s.Service, s.class}
		if told[k] {
			continue
		}
		if len(told) == 0 { // the counters are to begin here
			before, _ := n.steer.ShedCounts() // see shedCounts
			n.shedBefore.Store(&before)
			n.tell(Notice{Began: true, Text: "the node is overloaded: packets of sources that have proved nothing are dropped in the XDP program"})
		}
		told[k] = true
		n.log.Warn("the node is overloaded: packets of sources that have proved nothing are dropped in the XDP program",
			"service", s.Service, "class", s.Class, "most_packets_from", n.mostFrom(TopPrefixes))
	}
}

type shedCounts = [steer.MaxShed][steer.ShedClasses]uint64

// shedCounts is what was dropped since the last overload began.
func (n *Node) shedCounts() (counts shedCounts) {
	counts, err := n.steer.ShedCounts()
	if err != nil {
		return shedCounts{} // it can only fail when the map is closed
	}
	if before := n.shedBefore.Load(); before != nil {
		for place := range counts {
			for class := range counts[place] {
				counts[place][class] -= before[place][class]
			}
		}
	}
	return counts
}
