package outlier

import (
	"fmt"
	"math"
	"time"
)

const (
	bucketLength = time.Second
	buckets      = 10
	windowLength = buckets * bucketLength
)

// counts are what shares are made of.
type counts struct{ syns, completed, retransmitted, resets uint64 }

func (c *counts) add(o *counts) {
	c.syns += o.syns
	c.completed += o.completed
	c.retransmitted += o.retransmitted
	c.resets += o.resets
}

func (c *counts) sub(o *counts) {
	c.syns -= o.syns
	c.completed -= o.completed
	c.retransmitted -= o.retransmitted
	c.resets -= o.resets
}

// window sums counts over the last nine to ten seconds. It is to be turned to the time before it is read or added to.
type window struct {
	at      int64 // number of the newest bucket, since the detector's start
	sum     counts
	buckets [buckets]struct {
		counts
		sources uint64
	}
}

// turn moves on to now, which never goes back.
func (w *window) turn(now time.Duration) {
	at := int64(now / bucketLength)
	if at-w.at >= buckets {
		*w = window{at: at}
		return
	}
	for w.at < at {
		w.at++
		oldest := &w.buckets[w.at%buckets]
		w.sum.sub(&oldest.counts)
		oldest.counts, oldest.sources = counts{}, 0
	}
}

func (w *window) add(c counts, sources uint64) {
	b := &w.buckets[w.at%buckets]
	b.add(&c)
	b.sources |= sources
	w.sum.add(&c)
}

// without takes out what was added to o too. Both are turned to the same time. Sources stay until their bucket goes.
func (w *window) without(o *window) {
	for i := range w.buckets {
		w.buckets[i].sub(&o.buckets[i].counts)
	}
	w.sum.sub(&o.sum)
}

func (w *window) sources() (set uint64) {
	for i := range w.buckets {
		set |= w.buckets[i].sources
	}
	return set
}

// prompt is how many of the SYNs were answered at once. Handshakes of those that were sent again do not count; of which they were is not
// known, so each SYN sent again costs one.
func (c *counts) prompt() ratio {
	return ratio{c.completed - min(c.completed, c.retransmitted), c.syns}
}

// ratio is how many of some things had an event.
type ratio struct{ events, of uint64 }

// share may be above 1: events come later than what they are of.
func (r ratio) share() float64 {
	if r.of == 0 {
		return 0
	}
	return float64(r.events) / float64(r.of)
}

// likely is the share to expect of the next (the rule of succession): few of few tell little.
func (r ratio) likely() float64 { return float64(r.events+1) / float64(r.of+2) }

// worse says whether r's share is above least and times the others', and improbable if the others' were its own. Events that
// come up to each times for one cause count as one in that.
func (r ratio) worse(others ratio, least, times float64, each uint64) bool {
	if r.of < fewestEvents || others.of < fewestEvents || r.share() <= least || r.share() <= times*others.share() {
		return false
	}
	seen := min(ratio{r.events / each, r.of}.share(), 1)
	expected := ratio{others.events / each, others.of}.likely()
	return seen > expected && float64(r.of)*divergence(seen, expected) >= surprise
}

// divergence is how much one trial with share p of events speaks against a probability q of them (Kullback and Leibler), in nats:
// at most e to the -n·divergence is the probability of a share of p or more in n trials (Chernoff). 0 < q < 1.
func divergence(p, q float64) float64 {
	d := 0.0
	if p > 0 {
		d += p * math.Log(p/q)
	}
	if p < 1 {
		d += (1 - p) * math.Log((1-p)/(1-q))
	}
	return d
}

// noneOf is how surprising it is that none of n had an event while others had, if all had the same probability of it, whatever that is
// (Fisher's exact test): -ln of the probability that all the events fell to the others.
func noneOf(n uint64, others ratio) float64 {
	events := float64(min(others.events, others.of))
	return choose(float64(others.of+n), events) - choose(float64(others.of), events)
}

// choose is the natural logarithm of n over k.
func choose(n, k float64) float64 {
	a, _ := math.Lgamma(n + 1)
	b, _ := math.Lgamma(k + 1)
	c, _ := math.Lgamma(n - k + 1)
	return a - b - c
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*min(share, 1)) }
