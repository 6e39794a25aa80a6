package config

import (
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/maglev"
)

// What a service says about its flows: who gets a new one, and how long it stays there.

// The bounds of a word's life in the flow table. The table's clock wraps after 2.4 hours, so that it cannot tell longer times.
const (
	minLifetime = 5 * time.Second
	maxLifetime = 2 * time.Hour
)

// flows reads what stands between where a service is and who its backends are.
func (m mapping) flows(s *placed) {
	s.scheduler = m.field("scheduler")
	s.Scheduler, _ = enum(s.scheduler, SchedulerMaglev, SchedulerWRR, SchedulerLeastConn, SchedulerP2C, SchedulerSource)
	s.SourcePrefix = m.sourcePrefix(&s.Service)
	s.TableSize = m.tableSize()
	s.SlowStart, _ = m.field("slow_start").duration(0, time.Hour)

	table := m.field("flow_table")
	on, ok := table.onOff()
	s.FlowTable = on || !ok // nothing more is said about one that has been refused
	if !s.FlowTable {
		switch {
		case s.Scheduler.Local():
			table.refuseAs("off with scheduler: "+string(s.Scheduler), "on",
				"without a word in the flow table, the next packet of a flow would go to another backend")
		case s.Protocol == TCP:
			table.warn("off with tcp: each packet goes by its hash alone, so that connections break when the backends of the service change")
		}
	}
	s.OnDown = m.onDown(&s.Service)
	s.Lifetimes = m.lifetimes(&s.Service)
}

func (m mapping) sourcePrefix(s *Service) int {
	v, given := m.present["source_prefix"]
	if s.Scheduler != SchedulerSource {
		if given && s.Scheduler != "" {
			v.refuseAs(v.describe()+" with scheduler: "+string(s.Scheduler), "none", "only scheduler: source goes by the client's address")
		}
		return 0
	}
	bits := s.VIP.BitLen() // clients are of the VIP's family
	if !s.VIP.IsValid() {
		bits = 128
	}
	n, _ := m.fieldOf("source_prefix", bits > 32).integer(1, int64(bits))
	return n
}

func (m mapping) tableSize() int {
	v := m.field("table_size")
	n, ok := v.integer(minTableSize, maxTableSize)
	if ok && !maglev.IsPrime(n) {
		v.refuseAs(v.describe(), "a prime number", fmt.Sprintf("the next one is %d", maglev.NextPrime(n)))
		return 0
	}
	return n
}

func (m mapping) onDown(s *Service) OnDown {
	v, given := m.present["on_down"]
	if !given && !s.FlowTable {
		return DownRehash
	}
	on, _ := enum(m.fieldOf("on_down", s.Protocol == UDP), DownKeep, DownRehash, DownReset)
	switch {
	case on == DownReset && s.Protocol == UDP:
		v.refuseAs("reset with udp", "keep or rehash", "only TCP has a RST")
	case on != DownRehash && on != "" && !s.FlowTable:
		v.refuseAs(string(on)+" with flow_table: off", "rehash", "without words in the flow table, nothing is known of a backend's flows")
	}
	return on
}

func (m mapping) lifetimes(s *Service) (l Lifetimes) {
	if !s.FlowTable {
		if v, given := m.present["lifetimes"]; given {
			v.refuseAs(v.describe()+" with flow_table: off", "none", "flows have no words there that could live")
		}
		return Lifetimes{}
	}
	of := m.section("lifetimes")
	established := of.fieldOf("established", s.Protocol == UDP)
	l.New, _ = of.fieldOf("new", s.Protocol == UDP).duration(minLifetime, maxLifetime)
	l.Established, _ = established.duration(minLifetime, maxLifetime)
	if _, given := of.present["new"]; !given && l.Established != 0 {
		l.New = min(l.New, l.Established)
	}
	if s.Protocol != UDP {
		l.Closing, _ = of.field("closing").duration(minLifetime, maxLifetime)
	} else if v, given := of.present["closing"]; given {
		v.refuseAs(v.describe()+" with udp", "none", "UDP has no packet that closes a flow")
	}
	if l.Established != 0 && l.Established < l.New {
		established.warn(fmt.Sprintf("%s for established flows and %s for new ones: a flow lives shorter once it has proved to be one",
			formatDuration(l.Established), formatDuration(l.New)))
	}
	return l
}

// warnOfShares tells if the lookup table cannot give the backends the shares that their weights say, or gives none.
func (s *placed) warnOfShares(at value) {
	total, weighted, least := 0, 0, -1
	for i, b := range s.Backends {
		if b.Weight == 0 {
			continue
		}
		total += b.Weight
		weighted++
		if least < 0 || b.Weight < s.Backends[least].Weight {
			least = i
		}
	}
	switch {
	case weighted == 0:
		at.warn("all weights are 0, so that the service takes no new flow")
	case weighted*evenEntries > s.TableSize:
		at.warn(fmt.Sprintf("%d backends share a lookup table of %d entries, so that their shares differ by more than a hundredth; table_size: %d gives each of them %d",
			weighted, s.TableSize, maglev.NextPrime(weighted*evenEntries), evenEntries))
	case s.Backends[least].Weight*s.TableSize < exactEntries*total:
		tenths := 10 * s.Backends[least].Weight * s.TableSize / total
		s.weights[least].warn(fmt.Sprintf("%d of %d in all is %d.%d of the lookup table's %d entries: the backend's share may be off by more than a tenth",
			s.Backends[least].Weight, total, tenths/10, tenths%10, s.TableSize))
	}
}

// warnOfLocalChoice tells what schedulers cannot promise in a group: its nodes do not tell each other about flows.
func (p *places) warnOfLocalChoice(peers int) {
	for i := range p.services {
		s := &p.services[i]
		switch {
		case peers < 2 || !s.Scheduler.Local():
		case s.Scheduler == SchedulerP2C:
			s.scheduler.warn(fmt.Sprintf("p2c with %d peers: another node, to which a router moves a flow, takes the first of its two candidates, which may not be the one that has it", peers))
		default:
			s.scheduler.warn(fmt.Sprintf("%s with %d peers: a flow that a router moves to another node may reach another backend there", s.Scheduler, peers))
		}
	}
}
