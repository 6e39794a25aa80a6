package forwarder

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
)

// Defence is what a service does against floods of SYNs.
type Defence uint8

const (
	DefenceOff       Defence = iota
	DefenceAuto              // cookie or challenge while there is a flood, see CookieOffer.Ready
	DefenceChallenge         // challenge always
	DefenceCookie            // answer SYNs with cookies, which the agents of all backends take
)

// String returns the defence's name: off, auto, challenge or cookie.
func (d Defence) String() string {
	return [...]string{DefenceOff: "off", DefenceAuto: "auto", DefenceChallenge: "challenge", DefenceCookie: "cookie"}[d]
}

// The challenge. A SYN of a source that has not proved its address gets a SYN-ACK with a wrong acknowledgement number, which
// a client answers with a reset that carries that number (RFC 9293, 3.10.7.3), and then sends its SYN again. Whoever spoofs
// its source never sees the number. So nothing is remembered before there is proof, and then one word a source.
//
// The cookie. A SYN gets the SYN-ACK that the backend would send, but for its sequence number, which is a keyed hash of the
// connection. The client's acknowledgement brings it back; the flow gets its word then, and its packet goes to a backend, whose
// agent knows the cookie too and makes the connection of it. Nobody has to send anything twice, and sources that have proved
// their address are still answered that way: the backend sees no SYN.

// standing is what is known of a packet without a usable word when its service may be defended.
type standing uint8

const (
	regular  standing = iota // it is treated as without a defence
	ended                    // it ends here: it was answered, or has a reason
	proved                   // it brings a good cookie: its flow is opened, as established
	unproved                 // its flow may have been opened on another node: it goes by the hash, and gets no word
)

// unprovedRate is how many packets a second of unproved flows a service takes that is flooded, or answers with cookies always: flows that ECMP moves here come at such
// rates when a node dies, and each only until it has proved itself by opening another connection, or the flood is over.
var unprovedRate = guard.NewRate(50_000, time.Second)

// defend finds out the standing of packet i.
func (w *Worker) defend(i uint8, s *service, source packet.Addr, now int64) standing {
	m, e, number := &w.metas[i], w.engine, w.services[i]
	flooded, offer := e.flooded[number].Load(), e.offers[number].Load()
	cookies := s.defence == DefenceCookie || s.defence == DefenceAuto && flooded && offer&offerReady != 0
	switch {
	case m.Flags&(packet.ICMPError|placed) != 0:
		return regular
	case m.Flags&packet.SYN != 0:
		cell := w.count.service(number)
		cell.syns++
		if cell.syns%synSample == 0 {
			w.tops.of[TopSYNs].Add(guard.Source(source.Hi, source.Lo))
		}
		if s.defence == DefenceAuto && !flooded || s.defence != DefenceCookie && e.proved.Has(e.proved.Hash(source.Hi, source.Lo), now) {
			return regular
		}
		cell.challenged++
		w.answerSYN(i, s, cookies, offer, source, now)
		return ended
	case m.Flags&packet.RST != 0 && s.defence != DefenceCookie && w.bringsChallenge(i, source, now):
		w.prove(number, source, now)
		m.Reason = packet.ChallengeAnswer
		return ended
	case cookies && w.bringsCookie(i, source, now):
		w.prove(number, source, now)
		return proved
	case !flooded && s.defence != DefenceCookie || s.noTable: // there is nothing to defend
		return regular
	}
	if e.proved.Has(e.proved.Hash(source.Hi, source.Lo), now) {
		return regular
	}
	if !s.unproved.Admit(w.id, unprovedRate, now) {
		m.Reason = packet.Unproved
		return ended
	}
	if !flooded { // with cookies always on: what comes is rather a flow that ECMP moved here, and is to have a word
		return regular
	}
	return unproved
}

// leaveProbation counts the handshake of packet i's flow, whose word was on probation, as completed. later says that the word is
// established by it, in a later tick than its flow's first packet.
func (w *Worker) leaveProbation(i int, s *service, later bool) {
	if !s.agrees && (later || w.metas[i].Flags&(packet.FIN|packet.RST) != 0) { // its SYN got the word, so this is the first that is seen of it
		w.count.service(w.services[i]).completed++
	}
}

// tellsSource says whether the source of a packet m, which renews an older word, is to be noted as proved: in calm times one whose TCP
// connection lives is known, so that it needs no proof in a flood, and gets through when the node cannot take all. A connection tells
// it of itself once in eight ticks.
func (w *Worker) tellsSource(m *packet.Meta, s *service, number uint32, word conntrack.Word, tick uint16) bool {
	offset := uint16(m.Hash & 7) // so that not all do it in the same tick
	return s.tcp && word.State() != conntrack.Closing &&
		(word.State() != conntrack.Established || (word.Tick()+offset)>>3 != (tick+offset)>>3) &&
		!w.engine.flooded[number].Load() && !w.engine.overload.lasts.Load()
}

// prove notes that a source has proved its address.
func (w *Worker) prove(number uint32, source packet.Addr, now int64) {
	w.engine.proved.Add(w.engine.proved.Hash(source.Hi, source.Lo), now)
	w.count.service(number).proofs++
}

// answerSYN makes packet i, a SYN, the challenge or the SYN-ACK with a cookie that answers it.
func (w *Worker) answerSYN(i uint8, s *service, cookies bool, offer uint32, source packet.Addr, now int64) {
	m, d, e := &w.metas[i], &w.descs[i], w.engine
	m.Reason = packet.Challenged
	frame := w.frame(d)
	if int(i) >= w.received || !packet.Answerable(frame, m) {
		return
	}
	isn := packet.SYNSeq(frame, m)
	var start, length int
	if cookies {
		o := limitOptions(packet.ReadSYN(frame, m), offer)
		index := guard.MSSIndex(min(o.MSS, s.mss))
		if m.Flags&packet.V6 != 0 {
			index = guard.MSSIndex6(min(o.MSS, s.mss))
		}
		cookie := e.cookies.Number([2]uint64{source.Hi, source.Lo}, [2]uint64{m.Dst.Hi, m.Dst.Lo}, m.SrcPort, m.DstPort, isn,
			guard.CookieEpoch(w.wallSeconds(now)), index, o.Byte())
		start, length = packet.SYNCookie(w.io.Memory, int(d.Addr), m, o, cookie, s.mss, uint32(now/int64(time.Millisecond)))
	} else {
		number := e.challenge.Number([2]uint64{source.Hi, source.Lo}, [2]uint64{m.Dst.Hi, m.Dst.Lo}, m.SrcPort, m.DstPort, isn,
			guard.Epoch(w.wallSeconds(now)))
		start, length = packet.SYNChallenge(w.io.Memory, int(d.Addr), m, ^isn, number)
	}
	if d.Options != 0 {
		w.from.Recycle(w.tailOf(int(i)))
		d.Options = 0
	}
	m.Flags |= answer
	w.answers++
	w.depart(w.fromQueue, int(i), start, length)
}

// bringsChallenge says whether packet i, a reset, brings the number of a challenge back.
func (w *Worker) bringsChallenge(i uint8, source packet.Addr, now int64) bool {
	m := &w.metas[i]
	src, dst := [2]uint64{source.Hi, source.Lo}, [2]uint64{m.Dst.Hi, m.Dst.Lo}
	return w.engine.challenge.Proves(packet.RSTSeq(w.frame(&w.descs[i]), m), src, dst, m.SrcPort, m.DstPort, w.wallSeconds(now))
}

// bringsCookie says whether packet i acknowledges a cookie of its connection.
func (w *Worker) bringsCookie(i uint8, source packet.Addr, now int64) bool {
	m := &w.metas[i]
	src, dst := [2]uint64{source.Hi, source.Lo}, [2]uint64{m.Dst.Hi, m.Dst.Lo}
	frame := w.frame(&w.descs[i])
	if !packet.CarriesACK(frame, m) {
		return false
	}
	seq, ack, tsecr, hasTS := packet.ReadACK(frame, m)
	_, ok := w.engine.cookies.Check(ack-1, src, dst, m.SrcPort, m.DstPort, seq-1, w.wallSeconds(now), packet.CookieOptions(tsecr, hasTS))
	return ok
}

// wallSeconds is the time of day, read once a batch at most.
func (w *Worker) wallSeconds(now int64) int64 {
	if w.wallAt != now {
		w.wallAt, w.wall = now, w.engine.wall()
	}
	return w.wall
}

// When a service counts as flooded: so many SYNs a second of flows without a word come for which no handshake is completed,
// and they are more than half of all; for some looks in a row. It is over when there were few for a while.
const (
	detectPeriod = 250 * time.Millisecond
	floodSYNs    = 500 // a second
	// looks is how many looks in a row have to see a flood; lateLooks where a flow counts as completed only when its word leaves
	// probation, a tick and more later than its handshake.
	looks, lateLooks = 2, 14
	calmLooks        = 40 // ten seconds
)

// detector decides, for one service, whether it is flooded. It is a pure function of what was counted.
type detector struct {
	syns, completed uint64 // at the last look
	high, low       int    // looks in a row that saw a flood, or none
	flooded         bool
	late            bool // completed comes late
}

// look takes what has been counted until now, elapsed after the last look, and says whether the service is flooded.
func (d *detector) look(syns, completed uint64, elapsed time.Duration) bool {
	came, done := float64(syns-d.syns), float64(completed-d.completed)
	d.syns, d.completed = syns, completed
	if lost := came - done; lost/elapsed.Seconds() > floodSYNs && lost > came/2 {
		d.high, d.low = d.high+1, 0
	} else {
		d.high, d.low = 0, d.low+1
	}
	switch {
	case d.high >= looks && !d.late, d.high >= lateLooks:
		d.flooded = true
	case d.low >= calmLooks:
		d.flooded = false
	}
	return d.flooded
}

// FloodChange is the beginning or the end of a flood of SYNs.
type FloodChange struct {
	Service string
	Defence Defence
	Answer  string // what SYNs are answered with now: cookie or challenge
	Began   bool
	Rate    float64 // SYNs a second at the last look
	// Of the whole flood, at its end: how long it was, SYNs, how many of them the node answered, and the proofs that came.
	Lasted                   time.Duration
	SYNs, Challenged, Proofs uint64
}

// answerOf is what SYNs to a service are answered with, if they are. e.mu is held.
func (e *Engine) answerOf(s *serviceState) string {
	if s.spec.Defence == DefenceCookie || s.spec.Defence == DefenceAuto && e.offers[s.number].Load()&offerReady != 0 {
		return DefenceCookie.String()
	}
	return DefenceChallenge.String()
}

// floodStart is what had been counted when a flood began.
type floodStart struct {
	at                       int64
	syns, challenged, proofs uint64
}

// defends says whether a service has a defence.
func (e *Engine) defends() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.services {
		if s.spec.Defence != DefenceOff {
			return true
		}
	}
	return false
}

// Detect looks for floods in the services that have a defence, switches those that are on only in a flood, and returns what has
// begun and ended. One goroutine calls it, every detectPeriod while there are such, and once after each Apply.
func (e *Engine) Detect() (changes []FloodChange) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.clock()
	elapsed := time.Duration(now - e.detected)
	e.detected = now
	if elapsed <= 0 {
		return nil
	}
	for name, s := range e.services {
		sum := e.sumService(s.number)
		was := s.detector.syns
		s.detector.late = !s.spec.Scheduler.Agrees()
		flooded := s.detector.look(sum.syns, sum.completed, elapsed) && s.spec.Defence != DefenceOff
		if flooded != e.flooded[s.number].Load() {
			e.flooded[s.number].Store(flooded)
			e.tellNews()
			s.switches++
			c := FloodChange{Service: name, Defence: s.spec.Defence, Answer: e.answerOf(s), Began: flooded, Rate: float64(sum.syns-was) / elapsed.Seconds()}
			if f := &s.flood; flooded {
				*f = floodStart{now, was, sum.challenged, sum.proofs}
			} else {
				c.Lasted = time.Duration(now - f.at)
				c.SYNs, c.Challenged, c.Proofs = sum.syns-f.syns, sum.challenged-f.challenged, sum.proofs-f.proofs
			}
			changes = append(changes, c)
		}
	}
	e.tellDisturbed()
	return changes
}

// defences is the part of an engine that defends.
type defences struct {
	limiter   *guard.Limiter // nil: there are no limits
	limitLine int            // of the limiter, where Sweep goes on
	// nodeCeilings are those of the node; they reach workers in snapshots.
	nodeCeilings *ceilings
	proved       *guard.Proved
	challenge    *guard.Challenge
	cookies      *guard.Cookies
	flooded      []atomic.Bool   // by service number: it has a defence, and is flooded
	offers       []atomic.Uint32 // by service number: CookieOffer.word
	bans         chan netip.Addr // sources that are far over their limit
	wall         func() int64    // time of day, seconds
	detected     int64           // the last look of Detect
	applied      chan struct{}   // capacity 1: there is another configuration; for who calls Detect
}

// newDefences makes the memory of what defends. Only tables whose memory is given remember anything.
func newDefences(c *EngineConfig) (d defences, err error) {
	d.flooded, d.offers = make([]atomic.Bool, MaxServices), make([]atomic.Uint32, MaxServices)
	d.nodeCeilings = newCeilings(0)
	d.bans = make(chan netip.Addr, 256)
	d.applied = make(chan struct{}, 1)
	d.wall = c.Wall
	if d.wall == nil {
		d.wall = func() int64 { return time.Now().Unix() }
	}
	if c.LimitWords != nil {
		if d.limiter, err = guard.NewLimiter(c.LimitWords, c.Keys.Guard); err != nil {
			return d, err
		}
	}
	words := c.ProvedWords
	if words == nil {
		words = make([]uint64, 1<<10)
	}
	if d.proved, err = guard.NewProved(words, c.Keys.Guard); err != nil {
		return d, err
	}
	d.challenge, d.cookies = guard.NewChallenge(c.Keys.Challenge), guard.NewCookies(c.Keys.Cookie)
	return d, nil
}
