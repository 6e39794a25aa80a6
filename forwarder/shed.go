package forwarder

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
)

// Overload. When more comes than a worker can take, its RX ring runs full, and what finds no room is lost whatever it is. So
// before that the XDP program drops what nobody knows: packets of sources that have not proved their address, of the services
// and classes of packets that come most without a flow. Priorities are therefore: what comes from sources that have proved their
// address, by an established TCP connection or by an answer to a challenge or a cookie; what comes to services that are not
// flooded; the rest, of which a share goes on, as large as the workers can take.
//
// Workers count, by service and class, the packets that had no word or were over a limit, and tell how full their rings are. A
// shedder turns that into shares.

const (
	shedPeriod = 10 * time.Millisecond // between two looks, in an overload
	// The fill of an RX ring, of 256, from which on a little more is shed, and much more.
	pressureSome = 128
	pressureHigh = 192
	// shedLooks is how many looks in a row have to see it: a worker that did not run for a moment finds its ring full once.
	shedLooks = 2
	// shedLeast is how many unknown packets a second of a class there have to be before any is shed: fewer are no flood.
	shedLeast = 1000
	// shedCalm is how long no ring was half full before less is shed, and shedStep how long from then to the next step.
	shedCalm = time.Second
	shedStep = 250 * time.Millisecond
)

// shedKey is what can be shed apart: a class of packets to a service. Packets without ports are of no service.
type shedKey struct {
	service string
	class   int // see steer.ShedSYN
}

func (a shedKey) compare(b shedKey) int {
	return cmp.Or(strings.Compare(a.service, b.service), cmp.Compare(a.class, b.class))
}

// shedder decides what is shed. It is a pure function of what was counted.
type shedder struct {
	share map[shedKey]int // of steer.ShedAll, never 0
	tight int             // looks in a row that saw pressure
	calm  time.Duration
}

// look takes how full, of 256, the fullest RX ring was since the last look, and how many unknown packets workers took since then.
// It says whether shares have changed. Of what is passed on, half or an eighth is taken away where most comes, and after a while
// without pressure an eighth is given back, everywhere: so in a flood that lasts workers are busy, and no ring overflows.
func (s *shedder) look(pressure uint32, came map[shedKey]uint64, elapsed time.Duration) (changed bool) {
	if pressure < pressureSome {
		s.tight = 0
		if s.calm += elapsed; s.calm < shedCalm || len(s.share) == 0 {
			return false
		}
		s.calm -= shedStep
		for k, share := range s.share {
			if share -= max(1, (steer.ShedAll-share)/8); share <= 0 {
				delete(s.share, k)
				continue
			}
			s.share[k] = share
		}
		return true
	}
	s.calm = 0
	if s.tight++; s.tight < shedLooks {
		return false
	}
	var most shedKey
	for _, k := range slices.SortedFunc(maps.Keys(came), shedKey.compare) {
		if s.share[k] < steer.ShedAll && came[k] > came[most] {
			most = k
		}
	}
	if float64(came[most]) < shedLeast*elapsed.Seconds() || came[most] == 0 {
		return false // whoever fills the ring is known, or it is a moment's jam
	}
	passed := steer.ShedAll - s.share[most]
	if pressure >= pressureHigh {
		passed /= 2
	} else {
		passed -= max(1, passed/8)
	}
	s.share[most] = steer.ShedAll - passed
	return true
}

// classOf is the class of a packet that has ports.
func classOf(m *packet.Meta) int {
	switch {
	case m.Proto != protoTCP:
		return steer.ShedUDP
	case m.Flags&packet.SYN != 0:
		return steer.ShedSYN
	}
	return steer.ShedTCP
}

// press notes how full the ring is that a full batch came from.
func (w *Worker) press(port Port) {
	waiting, size := port.Backlog()
	full := uint32(256 * waiting / size)
	if full < pressureSome || full <= w.pressure.Load() {
		return
	}
	w.pressure.Store(full)
	select {
	case w.engine.overload.pressed <- struct{}{}:
	default:
	}
}

// ShedStats is what is shed of the packets of one class to one service.
type ShedStats struct {
	Service string  `json:"service"` // empty: of those without ports, to any
	Class   string  `json:"class"`   // syn | tcp | udp | portless
	Share   float64 `json:"share"`   // of the sources that have proved nothing
	Packets uint64  `json:"packets"` // dropped since the overload began
}

// shedding is ShedStats, and where its packets are counted.
type shedding struct {
	ShedStats
	place, class int
}

var shedClasses = [steer.ShedClasses]string{steer.ShedSYN: "syn", steer.ShedTCP: "tcp", steer.ShedUDP: "udp", steer.ShedPortless: "portless"}

// overload is the part of an engine that knows of overload. Engine.mu guards all but pressed and lasts.
type overload struct {
	pressed chan struct{} // has room for one notice that a ring is half full
	lasts   atomic.Bool   // something is shed
	shedder
	portless uint64         // what had been counted of these at the last look
	places   map[string]int // of the services that are shed, by steer.Shed.Place
}

func newOverload() overload {
	return overload{pressed: make(chan struct{}, 1), shedder: shedder{share: map[shedKey]int{}}, places: map[string]int{}}
}

// LookShed looks at the workers' rings and at what they have taken since its last call, elapsed ago, and returns what is to be
// shed from now on; changed says whether that is something else than before. The first call of an overload is to have something to
// compare with, and changes nothing.
func (e *Engine) LookShed(elapsed time.Duration) (list []steer.Shed, changed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	pressure, portless, came := uint32(0), uint64(0), map[shedKey]uint64{}
	for _, w := range e.workers {
		pressure = max(pressure, w.pressure.Swap(0))
		portless += w.count.shared.portless.Load()
	}
	came[shedKey{"", steer.ShedPortless}] = portless - e.overload.portless
	e.overload.portless = portless
	for name, s := range e.services {
		now := e.sumUnknown(s.number)
		for class, n := range now {
			if n != s.unknown[class] { // of most services nothing comes
				came[shedKey{name, class}] = n - s.unknown[class]
			}
		}
		s.unknown = now
	}
	changed = e.overload.look(pressure, came, elapsed)
	for k := range e.overload.share {
		if k.service != "" && e.services[k.service] == nil {
			delete(e.overload.share, k)
			changed = true
		}
	}
	if !changed {
		return nil, false
	}
	e.overload.lasts.Store(len(e.overload.share) > 0)
	e.tellDisturbed()
	return e.sheds(), true
}

// sumUnknown adds up what all workers counted of a service number's unknown packets, by class.
func (e *Engine) sumUnknown(number uint32) (sum [steer.ShedPortless]uint64) {
	for _, w := range e.workers {
		for class := range sum {
			sum[class] += w.count.shared.services[number].unknown[class].Load()
		}
	}
	return sum
}

// sheds is what is to be shed as the XDP program takes it. e.mu is held.
func (e *Engine) sheds() (list []steer.Shed) {
	at := map[string]int{}
	for _, k := range slices.SortedFunc(maps.Keys(e.overload.share), shedKey.compare) {
		i, there := at[k.service]
		if !there {
			place, ok := e.place(k.service)
			if !ok {
				continue // as many services as can be are shed already
			}
			d := steer.Shed{Place: place}
			if s := e.services[k.service]; s != nil {
				d.VIP, d.Proto = s.spec.VIP.Unmap(), s.spec.Protocol
				for _, p := range s.spec.Ports {
					d.Ports = append(d.Ports, steer.PortRange{First: p.First, Last: p.Last})
				}
			}
			i = len(list)
			at[k.service] = i
			list = append(list, d)
		}
		list[i].Share[k.class] = uint16(e.overload.share[k])
	}
	return list
}

// place is where packets to a service are counted while it is shed.
func (e *Engine) place(service string) (place int, ok bool) {
	maps.DeleteFunc(e.overload.places, func(name string, _ int) bool { return !e.isShed(name) })
	if place, ok = e.overload.places[service]; ok {
		return place, true
	}
	used := [steer.MaxShed]bool{}
	for _, p := range e.overload.places {
		used[p] = true
	}
	place = slices.Index(used[:], false)
	if place < 0 {
		return 0, false
	}
	e.overload.places[service] = place
	return place, true
}

func (e *Engine) isShed(service string) bool {
	for k := range e.overload.share {
		if k.service == service {
			return true
		}
	}
	return false
}

// shedStats tells what is shed now, without the packets.
func (e *Engine) shedStats() (stats []shedding) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, k := range slices.SortedFunc(maps.Keys(e.overload.share), shedKey.compare) {
		if place, ok := e.overload.places[k.service]; ok { // else there are too many to shed this one too
			stats = append(stats, shedding{
				ShedStats{Service: k.service, Class: shedClasses[k.class], Share: float64(e.overload.share[k]) / steer.ShedAll}, place, k.class,
			})
		}
	}
	return stats
}
