package forwarder

import "slices"

// Signal is what the packets of clients, and ICMP errors, tell about a backend: counts since the reader's last reading. The
// first four are of services on TCP. See BackendStats.
type Signal struct {
	Service, Backend string
	SYNs             uint64
	Completed        uint64 // handshakes
	Retransmitted    uint64 // SYNs
	Resets           uint64 // early ones
	Unreachable      uint64 // ICMP errors
	// Sources has a bit of 64 for each source of the SYNs, by a hash: it tells one client that fails from many. IPv6 sources are
	// told apart by their /64. Some may be of SYNs that the next reading counts.
	Sources  uint64
	HopReady bool // there is a route to it, and the next hop answers
}

// SignalReader reads what workers have noticed of backends since it did so last. It is for one goroutine; several readers do
// not take anything from each other.
type SignalReader struct {
	engine *Engine
	news   chan struct{}
	// last is what had been counted at the last reading, by slot, for whom, and which sources another reader has found since.
	last []lastSignal
	// What follows is as of a generation of the snapshot.
	generation uint64
	backends   []signalSlot
	defended   []defendedService
	unready    bool // some backend's hop is not ready

	changes uint64 // Engine.signalChanges at the last reading
}

type lastSignal struct {
	key     slotKey
	counts  signalCounts
	sources uint64
}

// signalSlot is a backend that signals are of.
type signalSlot struct {
	slot             uint32
	ready            bool
	service, backend string
}

// defendedService is a service that may answer SYNs.
type defendedService struct {
	name   string
	number uint32
	always bool
}

// NewSignalReader returns a reader whose first reading tells what was counted since now. Close must follow.
func (e *Engine) NewSignalReader() *SignalReader {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := &SignalReader{engine: e, news: make(chan struct{}, 1)}
	r.renew()
	for _, b := range r.backends {
		e.takeSources(b.slot)
		r.last[b.slot].counts = e.sumSignals(b.slot)
	}
	e.signalReaders = append(e.signalReaders, r)
	e.listNews()
	return r
}

// News has a value when there may be something to read since the last one was taken from it. Looking ten times a second whether
// there is would be what an idle node does most.
func (r *SignalReader) News() <-chan struct{} { return r.news }

// Close ends the use of the reader.
func (r *SignalReader) Close() {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	r.engine.signalReaders = slices.DeleteFunc(r.engine.signalReaders, func(x *SignalReader) bool { return x == r })
	r.engine.listNews()
}

// listNews makes the list of whom tellNews tells. e.mu is held.
func (e *Engine) listNews() {
	list := make([]chan struct{}, 0, len(e.signalReaders))
	for _, r := range e.signalReaders {
		list = append(list, r.news)
	}
	e.signalNews.Store(&list)
}

// tellNews tells all readers that there may be something to read. It waits for nobody: workers call it.
func (e *Engine) tellNews() {
	if list := e.signalNews.Load(); list != nil {
		for _, news := range *list {
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}
}

// Read returns the signals of configured backends, in no certain order. A backend of which there is nothing to tell, and whose hop
// is ready, is left out. suspended are the services whose SYN defence answers SYNs now: what is counted of them tells nothing,
// since most SYNs are not sent on, or are forged. What a busy worker has counted shows after a millisecond.
func (r *SignalReader) Read() (signals []Signal, suspended []string) {
	e := r.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	changes := e.signalChanges() // before the counts: what comes in between is found now, and looked for again
	if r.generation != e.generation {
		r.renew()
	}
	for _, s := range r.defended {
		if s.always || e.flooded[s.number].Load() {
			suspended = append(suspended, s.name)
		}
	}
	if !r.unready && changes == r.changes {
		return nil, suspended
	}
	r.changes = changes
	for i := range r.backends {
		b := &r.backends[i]
		last, counts := &r.last[b.slot], e.sumSignals(b.slot)
		if counts == last.counts && b.ready {
			continue
		}
		news := counts
		news.sub(last.counts)
		last.counts = counts
		s := Signal{
			Service: b.service, Backend: b.backend, HopReady: b.ready,
			SYNs: news.syns, Completed: news.completed, Retransmitted: news.retransmitted, Resets: news.resets, Unreachable: news.unreachable,
		}
		if news.syns > 0 {
			e.takeSources(b.slot)
			s.Sources, last.sources = last.sources, 0
		}
		signals = append(signals, s)
	}
	return signals, suspended
}

// renew finds out of which backends there are signals. A slot that is another's now begins with what had been counted when it was
// given out. e.mu is held.
func (r *SignalReader) renew() {
	e := r.engine
	r.generation, r.unready = e.generation, false
	r.backends, r.defended = r.backends[:0], r.defended[:0]
	if n := len(e.slots.states); n > len(r.last) {
		r.last = append(r.last, make([]lastSignal, n-len(r.last))...)
	}
	names := make([]string, len(e.numbers)) // of services, by number
	for name, s := range e.services {
		names[s.number] = name
		if s.spec.Defence != DefenceOff {
			r.defended = append(r.defended, defendedService{name, s.number, s.spec.Defence != DefenceAuto})
		}
	}
	targets := e.snapshot.Load().targets
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if st.phase != slotActive {
			continue
		}
		b := signalSlot{slot: uint32(i), ready: targets[i].ready(), service: names[st.key.service], backend: st.backend}
		r.backends = append(r.backends, b)
		r.unready = r.unready || !b.ready
		if last := &r.last[i]; last.key != st.key {
			*last = lastSignal{key: st.key, counts: st.signalsBase}
		}
	}
}

// signalChanges grows with whatever a reading can tell, but for hops. e.mu is held.
func (e *Engine) signalChanges() uint64 {
	n := e.unreachable.total
	for _, w := range e.workers {
		n += w.count.shared.signalled.Load()
	}
	return n
}

// takeSources gives all readers the sources that workers found for a slot. e.mu is held.
func (e *Engine) takeSources(slot uint32) {
	var sources uint64
	for _, w := range e.workers {
		sources |= w.count.shared.signals[slot].sources.Swap(0)
	}
	for _, r := range e.signalReaders {
		if r.generation != e.generation { // the slot may have been another's
			r.renew()
		}
		r.last[slot].sources |= sources
	}
}
