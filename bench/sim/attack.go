//go:build linux

package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

const (
	// attackSpan is how much simulated time an attack takes at least: the clock of a shorter one runs faster, so that ticks pass.
	attackSpan = 30 * time.Second
	// An attack with repeated flows has them in stages, one after another. In each, the stage's flows send in turn, at least so
	// many rounds, over more than a tick: then their words look established, and cannot be evicted for five minutes.
	attackStages = 10
	stageRounds  = 4
	// attackFirst is the first source address of attackers: nobody else's.
	attackFirst = uint32(0x20000000)
)

// attack is what is sent to a node with regular flows.
type attack struct {
	name  string
	text  string
	proto uint8
	kind  packetKind
	// repeat says that the attack sends packets of the same flows again and again; see attackStages.
	repeat bool
	// arrivals says that regular flows go on being opened under the attack.
	arrivals bool
}

var attacks = []attack{
	{name: "attack-random-syns", text: "random SYNs", proto: packet.ProtoTCP, kind: syn},
	{name: "attack-random-acks", text: "random ACKs", proto: packet.ProtoTCP, kind: data, arrivals: true},
	{name: "attack-random-udp", text: "random UDP", proto: packet.ProtoUDP, kind: data, arrivals: true},
	{name: "attack-repeated-acks", text: "ACKs of the same flows, over and over", proto: packet.ProtoTCP, kind: data, repeat: true, arrivals: true},
}

// attackRow is what an attack did.
type attackRow struct {
	attack
	packets   int           // of the attack
	took      time.Duration // of real time
	simulated time.Duration
	fill      float64 // of the table's words, at the end
	inserts   int     // words that appeared beyond those of regular flows; only without arrivals
	old       int     // regular flows that were established before
	oldLost   int     // of those, without a word at the end
	opened    int     // regular flows that were opened under the attack
	wordless  int     // of those, without a word at the end
	broken    int     // of all regular flows
	changed   int     // of these, how many more break when a backend is added after it
}

// siege is a node under attack.
type siege struct {
	attack
	node     *node
	now      int64
	table    *conntrack.Table // the node's, to look at
	owner    []int16          // by regular flow
	bad      []bool
	flows    []uint32
	got      []int16
	lost     []bool // established before, and found without a word
	old      int    // flows that were established before
	opened   int
	next     int // regular flow whose turn it is
	sent     int // packets of the attack
	rng      *rand.Rand
	stage    int // of an attack with repeated flows
	sequence int
}

// run attacks a node with a flow table for the given number of flows, of which a quarter is in use, for a while of real time, at
// the full speed of the worker. By the node's clock it takes at least attackSpan.
func (a attack) run(flows int, seed uint64, duration time.Duration) (row attackRow, err error) {
	row = attackRow{attack: a}
	keys, err := keysOf(seed)
	if err != nil {
		return row, err
	}
	s := &siege{attack: a, now: bootTime, rng: rand.New(rand.NewPCG(seed, 3))}
	if s.node, err = newNode(keys, flows, func() int64 { return s.now }); err != nil {
		return row, err
	}
	defer s.node.close()
	v := make(view, allBackends)
	for b := range fleetBackends {
		v[b] = backend{configured: true, weight: 100, state: maglev.Up}
	}
	if err := s.node.start(specOf(v, maglev.Maglev, true), false); err != nil {
		return row, err
	}
	if s.table, err = conntrack.New(s.node.words); err != nil {
		return row, err
	}
	row.old = flows / 4
	late := flows / 8
	n := row.old + late
	s.owner, s.bad, s.flows, s.got, s.lost = make([]int16, n), make([]bool, n), make([]uint32, n), make([]int16, n), make([]bool, n)
	s.old = row.old
	for i := range s.flows {
		s.flows[i] = uint32(i)
	}
	// The regular flows become established.
	if err := s.open(row.old); err != nil {
		return row, err
	}
	for range 2 {
		s.now += int64(3 * time.Second)
		if err := s.talk(0, s.opened); err != nil {
			return row, err
		}
	}
	before := used(s.node.words)

	start, begin := time.Now(), s.now
	row.simulated = max(attackSpan, duration)
	for done := 0.0; done < 1; {
		for range 64 { // some ten ms
			if err := s.strike(); err != nil {
				return row, err
			}
			done = min(1, s.progress(time.Since(start), duration))
			s.now = begin + int64(done*float64(row.simulated))
			s.stage = min(int(done*attackStages), attackStages-1)
		}
		// Regular flows go on: each sends every few seconds, and new ones come.
		if a.arrivals {
			if err := s.open(row.old + int(done*float64(late))); err != nil {
				return row, err
			}
		}
		if err := s.talkSome(); err != nil {
			return row, err
		}
	}
	row.took = time.Since(start)
	row.packets, row.opened = s.sent, s.opened-row.old
	row.fill = float64(used(s.node.words)) / float64(len(s.node.words))
	if !a.arrivals {
		row.inserts = used(s.node.words) - before
	}
	s.look(0, s.old)
	for i := s.old; i < s.opened; i++ {
		if !s.hasWord(i) {
			row.wordless++
		}
	}
	s.now += int64(3 * time.Second)
	if err := s.talk(0, s.opened); err != nil {
		return row, err
	}
	for i := range s.opened {
		if s.lost[i] {
			row.oldLost++
		}
		if s.bad[i] {
			row.broken++
		}
	}
	row.changed, err = s.change(v)
	return row, err
}

// change adds a backend, has all flows talk while the table from before counts and after, and returns how many more break.
func (s *siege) change(v view) (more int, err error) {
	was := make([]bool, s.opened)
	copy(was, s.bad)
	v[added] = backend{configured: true, weight: 100, state: maglev.Up}
	if err := s.node.engine.Apply(specOf(v, maglev.Maglev, true)); err != nil {
		return 0, err
	}
	for range 2 {
		s.now += int64(late / 2)
		if err := s.talk(0, s.opened); err != nil {
			return 0, err
		}
	}
	for i, bad := range was {
		if s.bad[i] && !bad {
			more++
		}
	}
	return more, nil
}

// progress is how much of the attack is over.
func (s *siege) progress(took, duration time.Duration) float64 {
	done := float64(took) / float64(duration)
	switch { // however slow the machine is
	case s.repeat: // its flows must look established
		done = min(done, float64(s.sent)/float64(attackStages*stageRounds*s.stageFlows()))
	case s.kind == data: // it must fill the table
		done = min(done, float64(s.sent)/float64(3*len(s.node.words)))
	}
	return done
}

// stageFlows is how many flows each stage of an attack with repeated ones has: together half as many again as the table has
// words.
func (s *siege) stageFlows() int { return len(s.node.words) * 3 / 2 / attackStages }

// strike sends a burst of the attack.
func (s *siege) strike() error {
	s.node.prepare(s.proto)
	for i := range burst {
		r := s.rng.Uint64()
		src, port := attackFirst+uint32(r>>36), uint16(r)
		if s.repeat {
			k := s.stage*s.stageFlows() + s.sequence%s.stageFlows()
			src, port = attackFirst+uint32(k>>8), 1024+uint16(k&0xff)
			s.sequence++
		}
		s.node.put(i, src, port, s.kind)
	}
	s.sent += burst
	return s.node.pass(burst, nil)
}

// open opens regular flows until there are n.
func (s *siege) open(n int) error {
	from := s.opened
	if n <= from {
		return nil
	}
	s.opened = n
	if err := s.node.forward(packet.ProtoTCP, syn, s.flows[from:n], s.owner[from:n]); err != nil {
		return err
	}
	return s.talk(from, n)
}

// talkSome has the next part of the regular flows send a packet.
func (s *siege) talkSome() error {
	from := s.next
	to := min(from+8*burst, s.opened)
	if s.next = to; to == s.opened {
		s.next = 0
	}
	s.look(from, min(to, s.old))
	return s.talk(from, to)
}

// look notes which of the flows from..to-1 have lost their words. It comes before their next packets, which write new ones.
func (s *siege) look(from, to int) {
	for i := from; i < to; i++ {
		s.lost[i] = s.lost[i] || !s.hasWord(i)
	}
}

// talk has the flows from..to-1 send a packet each, and notes where it went.
func (s *siege) talk(from, to int) error {
	if err := s.node.forward(packet.ProtoTCP, data, s.flows[from:to], s.got[from:to]); err != nil {
		return err
	}
	for i := from; i < to; i++ {
		if s.got[i] != s.owner[i] || s.owner[i] == noBackend {
			s.bad[i] = true
		}
	}
	return nil
}

// hasWord says whether a regular flow has a word.
func (s *siege) hasWord(flow int) bool {
	src, port := tuple(uint32(flow))
	hash := packet.FlowHash(&s.node.keys.Flow, packet.Addr{Lo: 0xffff_0000_0000 | uint64(src)}, packet.FromNetip(vip), port, tcpPort, packet.ProtoTCP)
	_, w := s.table.Lookup(hash)
	return w != 0
}

// used counts the words that are not free.
func used(words []uint64) (n int) {
	for _, w := range words {
		if w != 0 {
			n++
		}
	}
	return n
}

// result is the row as flows of the regular clients.
func (r *attackRow) result() Result {
	return Result{Scenario: r.name, Scheme: "sluice", Flows: r.old + r.opened, Broken: r.broken}
}

// verdicts judges the row.
func (r *attackRow) verdicts() []Verdict {
	v := []Verdict{{
		Scenario: r.name, Promise: "no regular flow breaks", Measured: fmt.Sprintf("%d broken", r.broken), Bound: "0", OK: r.broken == 0,
	}, {
		Scenario: r.name, Promise: "no active established flow loses its word", Measured: fmt.Sprintf("%d lost", r.oldLost), Bound: "0", OK: r.oldLost == 0,
	}}
	if !r.arrivals {
		v = append(v, Verdict{
			Scenario: r.name, Promise: "the attack writes nothing into the flow table", Measured: fmt.Sprintf("%d words", r.inserts), Bound: "0", OK: r.inserts == 0,
		})
	}
	return v
}
