//go:build linux

package nexthop

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// follow is the state behind FollowRoutes and Resolve.
type follow struct {
	switching sync.Mutex // held by FollowRoutes

	// reading is held by who reads the kernel's table, which can take seconds. It is taken before work.
	reading sync.Mutex
	sockets map[int]*nl.SocketHandle // for that only; guarded by reading

	// Guarded by Watcher.mu.
	on        bool
	notices   []change // not yet applied
	since     []change // since the table is being read; nil when it is not
	stale     bool     // the table has to be read (again)
	rereading bool     // reread is running
	announce  bool     // it has published something that Run has to announce
	rules     bool     // policy rules have changed
	readAt    time.Time
	took      time.Duration // reading the table

	// Guarded by Watcher.work.
	layer  *layer                 // nil unless routes are followed
	asked  map[neighKey]time.Time // destinations on a link that are kept resolved, and when they were last needed
	warned bool                   // of policy rules

	wants      chan netip.Addr // what Resolve was called with
	background sync.WaitGroup  // reread
}

const (
	// maxNotices bounds the notices that wait; with more of them it is quicker to read the table anew.
	maxNotices = 1 << 14
	// maxSince bounds those that come while the table is read.
	maxSince = 1 << 16
	// maxApplied bounds those of one pass, which take some 20 µs each in a full table: nothing else waits long for them.
	maxApplied = 1000
	// readShare is how much longer than reading the table takes it is left alone by the regular resync: a full Internet
	// table costs a hundredth of a core.
	readShare = 100
)

// FollowRoutes makes the watcher keep the kernel's whole routing table, or no longer. It is off at first: a full Internet
// table costs memory and time. When FollowRoutes(true) returns nil, [Watcher.Routes] is complete; later changes come with
// Run, and are announced by changed.
//
// Followed are the tables local, main and default in the order of the kernel's own policy rules; other rules are not (a
// warning in the log says so), nor are routes for a TOS or a source address. Of several routes to one destination the one
// with the lowest metric counts. A next hop on a link that is down is left out while the route has another. Path MTUs
// that the kernel has learned are not seen. Gateways are kept resolved like tracked addresses.
//
// The error is the kernel's, or net.ErrClosed; nothing is followed then.
func (w *Watcher) FollowRoutes(on bool) error {
	f := &w.follow
	f.switching.Lock()
	defer f.switching.Unlock()
	w.mu.Lock()
	was := f.on
	f.on = on
	w.mu.Unlock()
	if on == was {
		return nil
	}
	if on {
		_, err := w.readRoutes()
		if err == nil {
			w.wake() // what is stale again already
			return nil
		}
		w.unfollow()
		return fmt.Errorf("follow routes: %w", err)
	}
	w.unfollow()
	return nil
}

// unfollow forgets the routes.
func (w *Watcher) unfollow() {
	w.work.Lock()
	defer w.work.Unlock()
	f := &w.follow
	w.mu.Lock()
	f.on, f.notices, f.since, f.stale = false, nil, nil, false
	w.mu.Unlock()
	f.layer = nil
	clear(f.asked)
	if w.closed {
		return
	}
	if w.keep() {
		w.wake()
	}
	w.publish()
}

// Routes returns the present routes, nil unless they are followed. It never waits. The same pointer means that nothing
// has changed.
func (w *Watcher) Routes() *Routes { return w.view.Load().routes }

// readRoutes reads the kernel's table and publishes it. The notices that come meanwhile go on being applied to the old
// one, and are applied to the new one in the end.
func (w *Watcher) readRoutes() (differs bool, err error) {
	f := &w.follow
	f.reading.Lock()
	defer f.reading.Unlock()
	if w.stopped.Err() != nil {
		return false, net.ErrClosed
	}
	w.mu.Lock()
	f.since, f.stale = []change{}, false
	w.mu.Unlock()
	start := time.Now()
	r, err := w.dumpRoutes()
	took := time.Since(start)

	w.work.Lock()
	defer w.work.Unlock()
	w.mu.Lock()
	on, since := f.on, f.since
	f.since = nil
	if err == nil {
		f.notices, f.readAt, f.took = nil, time.Now(), took
	}
	w.mu.Unlock()
	if err != nil || !on {
		return false, err
	}
	f.layer = newLayer(r)
	w.apply(since)
	w.checkRules()
	if w.keep() {
		w.wake()
	}
	return w.publish(), nil
}

// dumpRoutes reads all routes of both families. The caller holds reading.
func (w *Watcher) dumpRoutes() (r *rib, err error) {
	err = uninterrupted(func() error {
		r = newRib()
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.Sockets = w.follow.sockets
		req.AddData(&nl.RtMsg{})
		err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE, func(m []byte) bool {
			if dst, e, ok := parseRoute(m); ok {
				r.add(dst, e)
			}
			return w.stopped.Err() == nil
		})
		if w.stopped.Err() != nil {
			return net.ErrClosed // what the kernel still wanted to say stays in the socket, which is of no use any more
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return r, nil
}

// reread reads the table in a goroutine of its own, and then rests, so that a table in uproar costs a fifth of a core.
func (w *Watcher) reread() {
	f := &w.follow
	differs, err := w.readRoutes()
	w.mu.Lock()
	pause := restFactor * f.took
	if err != nil {
		f.stale, pause = true, retryAfter
	}
	f.announce = f.announce || differs
	w.mu.Unlock()
	if err != nil && w.stopped.Err() == nil {
		w.log.Warn("reading the routing table anew failed; what is known stays", "error", err)
	}
	w.wake()
	rest(w.stopped, pause)
	w.mu.Lock()
	f.rereading = false
	w.mu.Unlock()
	w.wake()
}

// apply brings the routes up to date with notices. The caller holds work.
func (w *Watcher) apply(notices []change) {
	sure := true
	for i := range notices {
		sure = w.follow.layer.rib.apply(&notices[i]) && sure
	}
	if !sure {
		w.mu.Lock()
		w.follow.stale = true
		w.mu.Unlock()
	}
}

// noteRoute keeps a notice about a route. The caller holds mu.
func (w *Watcher) noteRoute(m *syscall.NetlinkMessage) bool {
	f := &w.follow
	if !f.on {
		return false
	}
	c, ok := parseChange(m)
	if !ok {
		return false
	}
	switch {
	case f.since == nil:
		f.stale = f.stale || len(f.notices) == maxNotices
	case len(f.since) < maxSince:
		f.since = append(f.since, c)
	default:
		f.stale = true
	}
	if len(f.notices) == maxNotices {
		f.notices = nil
	}
	f.notices = append(f.notices, c)
	return true
}

// staleRoutes has the table read anew if it is followed. The caller holds mu.
func (w *Watcher) staleRoutes() {
	w.follow.stale = w.follow.on
}

// passRoutes does a pass's share of the routes: what was asked for, what notices say, what must be read anew. The
// caller holds work.
func (w *Watcher) passRoutes(resync bool) (differs bool) {
	f := &w.follow
	if resync {
		w.reviewAsked(time.Now())
	}
	w.takeWants(time.Now()) // before the notices: base is what the rib holds only up to the first change
	w.mu.Lock()
	notices, rules := f.notices, f.rules
	if len(notices) > maxApplied {
		notices = notices[:maxApplied]
		w.wake()
	}
	f.notices = f.notices[len(notices):]
	differs = f.announce
	f.announce, f.rules = false, false
	w.mu.Unlock()
	if f.layer == nil {
		return differs // the notices are in since, too
	}
	w.apply(notices)
	if rules {
		w.checkRules()
	}
	w.mu.Lock()
	read := f.stale && !f.rereading
	if read {
		f.rereading = true
	}
	w.mu.Unlock()
	if read {
		f.background.Go(w.reread)
	}
	return differs
}

// checkRules warns when the kernel goes by more rules than are followed. The caller holds work.
func (w *Watcher) checkRules() {
	if w.follow.warned {
		return
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var rules []netlink.Rule
		err := uninterrupted(func() (err error) {
			rules, err = w.handle.RuleList(family)
			return err
		})
		if err != nil {
			w.log.Debug("listing policy rules", "error", err) // only the warning is lost
			return
		}
		for _, r := range rules {
			known := [][2]int{{0, unix.RT_TABLE_LOCAL}, {32766, unix.RT_TABLE_MAIN}, {32767, unix.RT_TABLE_DEFAULT}}
			if slices.Contains(known, [2]int{r.Priority, r.Table}) {
				continue
			}
			w.follow.warned = true
			w.log.Warn("there are policy rules beyond the kernel's own; packets to clients go by the tables local, main and "+
				"default all the same", "rule", r.String())
			return
		}
	}
}

const (
	// wantsBuffer is how many calls of Resolve may wait for a pass.
	wantsBuffer = 256
	// maxAsked bounds the destinations that are kept resolved.
	maxAsked = 4096
	// maxUnanswered bounds those that have not answered: packets to many absent ones must not fill the kernel's table,
	// which holds 1024 by default.
	maxUnanswered = 256
	// A destination that does not answer makes room for another after answerWithin, and is given up after giveUpAfter.
	answerWithin = time.Second
	giveUpAfter  = 10 * time.Second
	// forgetAfter is how long a destination is kept resolved after packets went there.
	forgetAfter = 5 * time.Minute
)

// Resolve has the kernel find out the Ethernet address of a destination that is on a link of this node, and keep it as
// long as packets go there by [Routes.Find] and some minutes longer. It does nothing for other addresses, nor unless
// routes are followed.
//
// It may be called often, from any goroutine, and never waits: a call too many is forgotten, so whoever still has a
// packet for that destination calls again. Acting on it takes Run.
func (w *Watcher) Resolve(a netip.Addr) {
	select {
	case w.follow.wants <- a:
		w.wake()
	default:
	}
}

// takeWants does what Resolve was called for. The caller holds work.
func (w *Watcher) takeWants(now time.Time) {
	f := &w.follow
	if len(f.wants) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	unanswered := 0
	var late []neighKey
	for k, needed := range f.asked {
		if !w.neighs.m[k].usable() {
			unanswered++
			if now.Sub(needed) > answerWithin {
				late = append(late, k)
			}
		}
	}
	for {
		var a netip.Addr
		select {
		case a = <-f.wants:
		default:
			return
		}
		a = a.Unmap()
		if f.layer == nil || !a.IsValid() || a.Zone() != "" {
			continue
		}
		e := f.layer.entry(a)
		if e.reject || len(e.hops) != 1 || e.hops[0].gateway.IsValid() {
			continue
		}
		k := neighKey{e.hops[0].link, a}
		l := w.links.m[k.link]
		if _, known := f.asked[k]; known || w.neighs.m[k].usable() || !l.Up || !l.Ethernet {
			continue
		}
		if unanswered >= maxUnanswered && len(late) > 0 {
			delete(f.asked, late[0])
			late = late[1:]
			unanswered--
		}
		if unanswered < maxUnanswered && len(f.asked) < maxAsked {
			f.asked[k] = now
			unanswered++
		}
	}
}

// reviewAsked keeps those destinations resolved that packets have gone to since the last time, and forgets others. The
// caller holds work.
func (w *Watcher) reviewAsked(now time.Time) {
	f := &w.follow
	if f.layer == nil {
		return
	}
	for _, h := range f.layer.hosts {
		if _, known := f.asked[h.key]; h.used.Swap(false) && (known || len(f.asked) < maxAsked) {
			f.asked[h.key] = now
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, needed := range f.asked {
		patience := giveUpAfter
		if w.neighs.m[k].usable() {
			patience = forgetAfter
		}
		if now.Sub(needed) > patience {
			delete(f.asked, k)
		}
	}
}
