package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Limits is what holds for all services together.
type Limits struct {
	ACL       `yaml:",inline"`
	PerSource SourceLimits `yaml:"per_source"`
	Node      Rates        `yaml:"node,omitempty"` // of all sources together
}

// SourceLimits is what one source may send to all services together, and what a source is.
type SourceLimits struct {
	IPv4Prefix int `yaml:"ipv4_prefix"` // how many leading bits of an address are one source, for services' limits too: 8 to 32
	IPv6Prefix int `yaml:"ipv6_prefix"` // 16 to 128
	Rates      `yaml:",inline"`
	Table      uint64 `yaml:"table"` // words of 8 bytes, one for each source and limit; takes effect at the next start
}

// ServiceLimits is what holds for one service, beside Limits.
type ServiceLimits struct {
	ACL       `yaml:",inline"`
	PerSource Rates `yaml:"per_source,omitempty"` // of one source, which is what SourceLimits says
	Total     Rates `yaml:"total,omitempty"`      // of all sources together
}

// Rates is how much may come in a second. It is zero if nothing is limited; else Burst and Action are set.
type Rates struct {
	Packets uint64        `yaml:"packets"` // a second; 0: any number
	SYNs    uint64        `yaml:"syns"`    // TCP SYNs a second; 0: any number, as always for a UDP service
	Flows   uint64        `yaml:"flows"`   // new words in the flow table a second; 0: any number, as always without FlowTable
	Burst   time.Duration `yaml:"burst"`   // so much of each rate may come at once, one event at least: 100 ms to 10 s
	Action  Action        `yaml:"action"`
}

// Any reports whether something is limited.
func (r Rates) Any() bool { return r.Packets != 0 || r.SYNs != 0 || r.Flows != 0 }

// Action is what becomes of packets beyond a limit.
type Action string

// What becomes of such packets.
const (
	ActionDrop    Action = "drop"
	ActionObserve Action = "observe" // they are counted and go on
)

// SYNDefence is who answers the SYNs of a service.
type SYNDefence string

// The SYN defences.
const (
	SYNOff       SYNDefence = "off"       // the backends
	SYNAuto      SYNDefence = "auto"      // as SYNCookie or SYNChallenge while SYNs flood the service, else the backends
	SYNChallenge SYNDefence = "challenge" // the node, with a challenge, until the source has proved its address
	SYNCookie    SYNDefence = "cookie"    // the node, with a cookie that the agents of the backends take
)

// rate is a number of events a second as the file has it.
type rate uint64

// String returns "50k/s".
func (r rate) String() string { return formatAmount(uint64(r)) + "/s" }

// MarshalYAML writes what the parser reads.
func (r rate) MarshalYAML() (any, error) { return r.String(), nil }

// writtenRates is Rates as the file has them.
type writtenRates struct {
	Packets rate          `yaml:"packets,omitempty"`
	SYNs    rate          `yaml:"syns,omitempty"`
	Flows   rate          `yaml:"flows,omitempty"`
	Burst   time.Duration `yaml:"burst,omitempty"`
	Action  Action        `yaml:"action,omitempty"`
}

func (r Rates) written() writtenRates {
	return writtenRates{rate(r.Packets), rate(r.SYNs), rate(r.Flows), r.Burst, r.Action}
}

// MarshalYAML writes what the parser reads.
func (r Rates) MarshalYAML() (any, error) { return r.written(), nil }

// MarshalYAML writes what the parser reads. Without it, the one of Rates would be taken.
func (l SourceLimits) MarshalYAML() (any, error) {
	return struct {
		IPv4Prefix   int `yaml:"ipv4_prefix"`
		IPv6Prefix   int `yaml:"ipv6_prefix"`
		writtenRates `yaml:",inline"`
		Table        uint64 `yaml:"table"`
	}{l.IPv4Prefix, l.IPv6Prefix, l.written(), l.Table}, nil
}

const (
	minBurst = 100 * time.Millisecond
	maxBurst = 10 * time.Second // the most that guard.NewRate can
	maxRate  = 1000_000_000     // a second
	minTable = 1000             // words
	maxTable = 1000_000_000
)

// limited is Rates and where they stand.
type limited struct {
	Rates
	m mapping
}

// rateFields are the rates of a section.
var rateFields = []struct {
	name  string
	event string // what is counted
	of    func(*Rates) *uint64
}{
	{"packets", "packet", func(r *Rates) *uint64 { return &r.Packets }},
	{"syns", "SYN", func(r *Rates) *uint64 { return &r.SYNs }},
	{"flows", "flow", func(r *Rates) *uint64 { return &r.Flows }},
}

// limits reads what holds for all services.
func (m mapping) limits(p *places) (l Limits) {
	l.ACL = m.acl()
	of := m.section("per_source")
	l.PerSource.IPv4Prefix, _ = of.field("ipv4_prefix").integer(8, 32)
	l.PerSource.IPv6Prefix, _ = of.field("ipv6_prefix").integer(16, 128)
	p.perSource = of.rates()
	l.PerSource.Rates = p.perSource.Rates
	l.PerSource.Table, _ = of.field("table").amount(minTable, maxTable)
	p.node = m.section("node").rates()
	l.Node = p.node.Rates
	return l
}

// guard reads what a service has against floods; defence is that of services that say nothing.
func (m mapping) guard(s *placed, defence SYNDefence, agentPort uint16) {
	of := m.section("limits")
	s.Limits.ACL = of.acl()
	s.perSource, s.total = of.section("per_source").rates(), of.section("total").rates()
	for _, l := range []limited{s.perSource, s.total} {
		if v, given := l.m.present["syns"]; given && s.Protocol == UDP {
			v.refuseAs(v.describe()+" with udp", "none", "only TCP has SYNs")
		}
		if v, given := l.m.present["flows"]; given && !s.FlowTable {
			v.refuseAs(v.describe()+" with flow_table: off", "none", "flows get no words there that could be counted")
		}
	}
	s.Limits.PerSource, s.Limits.Total = s.perSource.Rates, s.total.Rates

	v := m.field("syn_defence")
	switch {
	case s.Protocol == UDP:
		s.SYNDefence = SYNOff
		if d, _ := v.synDefence(); d != "" && d != SYNOff {
			v.refuseAs(string(d)+" with udp", "off", "only TCP has SYNs")
		}
	case v.missing():
		s.SYNDefence = defence
	default:
		s.SYNDefence, _ = v.synDefence()
	}
	s.AgentPort = agentPort
	if s.SYNDefence == SYNCookie && s.Forward == ForwardNAT {
		m.natCookies(s)
	}
}

// natCookies refuses SYN cookies of a service with more ports than agents, which see connections after NAT, can be told.
func (m mapping) natCookies(s *placed) {
	ports := 0
	for _, p := range s.Ports {
		ports += int(p.Last) - int(p.First) + 1
	}
	if ports <= maxNATCookiePorts {
		return
	}
	why := fmt.Sprintf("agents behind NAT are told each port, and these are %d; at most %d can be", ports, maxNATCookiePorts)
	if v := m.field("syn_defence"); v.missing() {
		m.field("forward").refuseAs("nat with the syn_defence at the top, cookie", "l2, ipip or gue", "or give the service a syn_defence of its own: "+why)
	} else {
		v.refuseAs("cookie with forward: nat", "off, auto or challenge", why)
	}
}

// maxNATCookiePorts is how many ports a service may have whose backends' agents accept SYN cookies behind NAT.
const maxNATCookiePorts = 1024

func (v value) synDefence() (SYNDefence, bool) {
	return enum(v, SYNOff, SYNAuto, SYNChallenge, SYNCookie)
}

// rates reads a section of rates. It refuses a burst that is less than one event: nothing would ever pass.
func (m mapping) rates() limited {
	l := limited{m: m}
	given := false
	for _, f := range rateFields {
		v := m.field(f.name)
		given = given || !v.missing()
		*f.of(&l.Rates), _ = v.rate()
	}
	l.Burst, _ = m.field("burst").duration(minBurst, maxBurst)
	l.Action, _ = enum(m.field("action"), ActionDrop, ActionObserve)
	if !l.Any() {
		l.Rates = Rates{} // so that there is one way to limit nothing
		_, burst := m.present["burst"]
		if _, action := m.present["action"]; (burst || action) && !given {
			m.at.warn("none of packets, syns and flows: nothing is limited")
		}
		return l
	}
	for _, f := range rateFields {
		if n := *f.of(&l.Rates); n != 0 && l.Burst != 0 && l.atOnce(n) < perEvent {
			least := time.Duration((uint64(time.Second) + n - 1) / n)
			m.field(f.name).refuseAs(fmt.Sprintf("%s with a burst of %s", rate(n), formatDuration(l.Burst)),
				fmt.Sprintf("at least one %s in a burst", f.event), "burst: "+formatDuration(least)+" is enough")
		}
	}
	return l
}

// perEvent is one event in the unit of atOnce.
const perEvent = uint64(time.Second / time.Microsecond)

// atOnce returns how much of a rate may come at once, in millionths of an event: at most 6e16.
func (r Rates) atOnce(n uint64) uint64 { return n * uint64(r.Burst/time.Microsecond) }

var ratePattern = regexp.MustCompile(`^(0|[1-9][0-9]{0,11})([kM]?)/s$`)

// rate reads a rate such as 50k/s.
func (v value) rate() (uint64, bool) {
	if v.missing() {
		return 0, false
	}
	s := v.node.Value
	m := ratePattern.FindStringSubmatch(s)
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!str" || m == nil {
		hint := ""
		switch number, perSecond := strings.CutSuffix(s, "/s"); {
		case v.node.Kind != yaml.ScalarNode:
		case amountPattern.MatchString(s):
			hint = "with its time: " + s + "/s"
		case perSecond && (strings.HasSuffix(number, "K") || strings.HasSuffix(number, "m")):
			hint = "k is a thousand, M a million"
		}
		v.refuse(hint)
		return 0, false
	}
	n, _ := strconv.ParseUint(m[1], 10, 64) // at most twelve digits
	n *= map[string]uint64{"": 1, "k": 1000, "M": 1000_000}[m[2]]
	if n < 1 || n > maxRate {
		hint := ""
		if n == 0 {
			hint = "leave the field out to limit nothing; limits.deny is for sources that may send nothing"
		}
		v.refuseAs(v.describe(), "a rate from "+rate(1).String()+" to "+rate(maxRate).String(), hint)
		return 0, false
	}
	return n, true
}

// warnOfLimits tells of limits that never apply, since another one is lower.
func (p *places) warnOfLimits() {
	p.perSource.warnOfPackets()
	p.node.warnOfPackets()
	p.perSource.warnOfLower(p.node)
	for i := range p.services {
		s := &p.services[i]
		s.perSource.warnOfPackets()
		s.total.warnOfPackets()
		s.perSource.warnOfLower(p.perSource, s.total, p.node)
		s.total.warnOfLower(p.node)
	}
}

// warnOfPackets tells if fewer packets pass than what has to come in packets.
func (l limited) warnOfPackets() {
	if l.Packets == 0 || l.Action != ActionDrop {
		return
	}
	for _, f := range rateFields[1:] {
		if n := *f.of(&l.Rates); n > l.Packets {
			l.m.field(f.name).warn(fmt.Sprintf("%s is never reached: packets: %s lets less pass, and each %s takes a packet", rate(n), rate(l.Packets), f.event))
		}
	}
}

// warnOfLower tells if one of the others, through which the same packets have to pass, lets less of them pass at any time.
func (l limited) warnOfLower(others ...limited) {
	for _, f := range rateFields {
		n := *f.of(&l.Rates)
		if n == 0 {
			continue
		}
		for _, other := range others {
			lower := *f.of(&other.Rates)
			if lower != 0 && lower < n && other.Action == ActionDrop && other.atOnce(lower) <= l.atOnce(n) {
				l.m.field(f.name).warn(fmt.Sprintf("%s is never reached: %s lets only %s pass", rate(n), other.m.field(f.name).path, rate(lower)))
				break
			}
		}
	}
}
