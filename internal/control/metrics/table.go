package metrics

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/control"
)

// metric is one line of the table.
type metric struct {
	name   string
	kind   prometheus.ValueType
	labels []string
	help   string // what it is
	use    string // what it means to an operator
	read   reader
	desc   *prometheus.Desc
}

// emit writes one sample, with the values of the labels in their order.
type emit func(v float64, labels ...string)

// reader finds the samples of a metric in a Status.
type reader func(s *control.Status, e emit)

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// The functions here make a reader for the whole node, or for each of its parts.

func node(f func(s *control.Status) float64) reader {
	return func(s *control.Status, e emit) { e(f(s)) }
}

func worker(f func(w *control.Worker) uint64) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Workers {
			w := &s.Traffic.Workers[i]
			e(float64(f(w)), strconv.Itoa(w.ID))
		}
	}
}

func iface(f func(i *forwarder.InterfaceStats) bool) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Interfaces {
			e(truth(f(&s.Traffic.Interfaces[i])), s.Traffic.Interfaces[i].Name)
		}
	}
}

// socket adds what the closed sockets of an interface counted under the queue "closed", so that no sum shrinks.
func socket(f func(c *forwarder.SocketStats) uint64) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Interfaces {
			n := &s.Traffic.Interfaces[i]
			for j := range n.Queues {
				e(float64(f(&n.Queues[j].SocketStats)), n.Name, strconv.Itoa(n.Queues[j].Queue))
			}
			if n.Closed != (forwarder.SocketStats{}) {
				e(float64(f(&n.Closed)), n.Name, "closed")
			}
		}
	}
}

func service(f func(s *control.Service) float64) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Services {
			e(f(&s.Traffic.Services[i]), s.Traffic.Services[i].Name)
		}
	}
}

func backend(f func(b *control.Backend) uint64) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Services {
			svc := &s.Traffic.Services[i]
			for _, b := range oneOfEachName(svc.Backends) {
				e(float64(f(b)), svc.Name, b.Name)
			}
		}
	}
}

// backendNumber is backend for what is no count.
func backendNumber(f func(b *control.Backend) float64) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Services {
			svc := &s.Traffic.Services[i]
			for _, b := range oneOfEachName(svc.Backends) {
				e(f(b), svc.Name, b.Name)
			}
		}
	}
}

// known is backendNumber for those that are configured: of one that is leaving nothing is known.
func known(f func(b *control.Backend) float64) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Services {
			svc := &s.Traffic.Services[i]
			for j := range svc.Backends {
				if b := &svc.Backends[j]; !b.Leaving {
					e(f(b), svc.Name, b.Name)
				}
			}
		}
	}
}

// probes reads the statistics of probes: of each backend, those of its check and of its readiness check.
func probes(f func(p *control.ProbeStats, e emit, labels ...string)) reader {
	return func(s *control.Status, e emit) {
		for i := range s.Traffic.Services {
			svc := &s.Traffic.Services[i]
			for j := range svc.Backends {
				b := &svc.Backends[j]
				for k := range b.Probes {
					check := "check"
					if b.Probes[k].Readiness {
						check = "readiness"
					}
					f(&b.Probes[k], e, svc.Name, b.Name, check)
				}
			}
		}
	}
}

// oneOfEachName returns the backends that metrics are about. A backend that is leaving is one of them, but for the time
// in which another has its name, as after a change of address: one name has one value.
func oneOfEachName(backends []control.Backend) (out []*control.Backend) {
	index := make(map[string]int, len(backends))
	for i := range backends {
		b := &backends[i]
		j, again := index[b.Name]
		switch {
		case !again:
			index[b.Name] = len(out)
			out = append(out, b)
		case !b.Leaving:
			out[j] = b
		}
	}
	return out
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// table is every metric, from the node's state to its backends.
var table = []*metric{
	{name: "sluice_info", kind: gauge, labels: []string{"node", "version"}, help: "Always 1; tells the node's name and version.", use: "Join it to see which version a node runs.",
		read: func(s *control.Status, e emit) { e(1, s.Node, s.Version) }},
	{name: "sluice_start_time_seconds", kind: gauge, help: "When the daemon started, in seconds since 1970.", use: "A change is a restart, after which counters begin at zero.",
		read: node(func(s *control.Status) float64 { return seconds(s.Started) })},
	{name: "sluice_ready", kind: gauge, help: "1 if the node is ready for traffic, else 0.", use: "0 outside of starts and stops needs a look at `sluice status`, which says why.",
		read: node(func(s *control.Status) float64 { return truth(s.Ready) })},

	{name: "sluice_config_info", kind: gauge, labels: []string{"hash"}, help: "Always 1; tells the hash of the configuration in force.", use: "Shows which nodes still run an old file.",
		read: func(s *control.Status, e emit) { e(1, s.Config.Hash) }},
	{name: "sluice_config_generation", kind: gauge, help: "1 at start, one more at each reload that was taken.", use: "Shows when reloads happened.",
		read: node(func(s *control.Status) float64 { return float64(s.Config.Generation) })},
	{name: "sluice_config_loaded_time_seconds", kind: gauge, help: "When the configuration in force was loaded, in seconds since 1970.", use: "Compare it with the time of your roll-out.",
		read: node(func(s *control.Status) float64 { return seconds(s.Config.Loaded) })},
	{name: "sluice_config_refused", kind: gauge, help: "1 if the last reload was refused, else 0.", use: "Alert on 1: the node runs an older configuration than its file.",
		read: node(func(s *control.Status) float64 { return truth(len(s.Config.Refused) > 0) })},

	{name: "sluice_xdp_packets_total", kind: counter, help: "Packets to VIPs that the XDP programs saw.", use: "The traffic of the node before any decision.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Steer.ToVIPs) })},
	{name: "sluice_xdp_redirected_packets_total", kind: counter, help: "Packets to VIPs that were given to a worker's socket.", use: "What it exceeds the workers' received packets by was lost in full rings.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Steer.Redirected) })},
	{name: "sluice_xdp_forwarded_packets_total", kind: counter, help: "Packets to VIPs that the XDP programs sent to their backends by themselves: the fast path.", use: "They are in sluice_backend_forwarded_packets_total too. Of a node whose interfaces are in copy mode it should be most of sluice_xdp_packets_total.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Steer.Forwarded) })},
	{name: "sluice_interface_fast_path", kind: gauge, labels: []string{"interface"}, help: "1 if the XDP program forwards packets of known flows that arrive on the interface, else 0.", use: "`sluice status` says why not.",
		read: iface(func(i *forwarder.InterfaceStats) bool { return i.FastPath })},
	{name: "sluice_xdp_dropped_packets_total", kind: counter, labels: []string{"reason"}, help: "Packets to VIPs that the XDP programs dropped.", use: "no_socket that grows means that a receive queue is not served: look at `queues` in the configuration and at `sluice status`. loop means that the address of a node is used for a backend, or that a router sends what is meant for a backend back to the node.",
		read: func(s *control.Status, e emit) {
			e(float64(s.Traffic.Steer.NoSocket), "no_socket")
			e(float64(s.Traffic.Steer.NoExit), "no_exit")
			e(float64(s.Traffic.Steer.NoDaemon), "no_daemon")
			e(float64(s.Traffic.Steer.Loops), "loop")
			e(float64(s.Traffic.Steer.Denied), "denied")
			e(float64(s.Traffic.Steer.Banned), "banned")
			e(float64(s.Traffic.Steer.Shed), "shed")
		}},
	{name: "sluice_shed_share", kind: gauge, labels: []string{"service", "class"}, help: "Share of the sources that have proved nothing whose packets the XDP programs drop, since the workers cannot take all, by service and class (syn, tcp, udp; portless, of no service); none in calm times.", use: "Alert when there is any: the node is overloaded. `sluice status --attack` says by whom.",
		read: func(s *control.Status, e emit) {
			for _, x := range s.Traffic.Shed {
				e(x.Share, x.Service, x.Class)
			}
		}},

	{name: "sluice_interface_up", kind: gauge, labels: []string{"interface"}, help: "1 if the interface is there and up, else 0.", use: "Alert on 0: its traffic does not arrive.",
		read: iface(func(i *forwarder.InterfaceStats) bool { return i.Up })},
	{name: "sluice_interface_native", kind: gauge, labels: []string{"interface"}, help: "1 if the XDP program runs in the driver, 0 if it runs in the slower generic way or not at all.", use: "0 where the driver can do better is a performance problem.",
		read: iface(func(i *forwarder.InterfaceStats) bool { return i.Attach == "native" })},
	{name: "sluice_interface_problem", kind: gauge, labels: []string{"interface"}, help: "1 if something is wrong with the interface, else 0.", use: "Alert on 1; `sluice status` says what it is.",
		read: iface(func(i *forwarder.InterfaceStats) bool { return i.Problem != "" })},

	{name: "sluice_queue_zero_copy", kind: gauge, labels: []string{"interface", "queue"}, help: "1 if the queue's socket works without copies, else 0.", use: "0 where the driver can do better is a performance problem.",
		read: func(s *control.Status, e emit) {
			for _, n := range s.Traffic.Interfaces {
				for _, q := range n.Queues {
					e(truth(q.Mode == "zerocopy"), n.Name, strconv.Itoa(q.Queue))
				}
			}
		}},
	{name: "sluice_queue_received_packets_total", kind: counter, labels: []string{"interface", "queue"}, help: "Frames received from the queue.", use: "Queues that differ much mean that the NIC spreads flows badly.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.Received })},
	{name: "sluice_queue_sent_packets_total", kind: counter, labels: []string{"interface", "queue"}, help: "Frames put into the queue's transmit ring.", use: "The node's output.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.Sent })},
	{name: "sluice_queue_rx_dropped_packets_total", kind: counter, labels: []string{"interface", "queue"}, help: "Frames that the kernel dropped for other reasons than a full ring, such as their size.", use: "Growth usually means frames larger than 3.5 kB: look at the MTU.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.RXDropped })},
	{name: "sluice_queue_rx_invalid_descriptors_total", kind: counter, labels: []string{"interface", "queue"}, help: "Descriptors in the fill ring that the kernel refused.", use: "Always 0; anything else is a fault of Sluice.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.RXInvalid })},
	{name: "sluice_queue_rx_ring_full_packets_total", kind: counter, labels: []string{"interface", "queue"}, help: "Frames dropped because the receive ring was full.", use: "Growth means that the queue's worker does not keep up: overload, or a core that it shares.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.RXRingFull })},
	{name: "sluice_queue_fill_ring_empty_total", kind: counter, labels: []string{"interface", "queue"}, help: "Times the kernel found no free frame in the fill ring.", use: "Growth with drops means that the worker does not keep up.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.FillEmpty })},
	{name: "sluice_queue_tx_invalid_descriptors_total", kind: counter, labels: []string{"interface", "queue"}, help: "Packets that the kernel would not send, or was not given because it would refuse them.", use: "Always 0; anything else is a fault of Sluice.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.TXInvalid })},
	{name: "sluice_queue_tx_ring_empty_total", kind: counter, labels: []string{"interface", "queue"}, help: "Times the kernel found nothing to send.", use: "Of no concern; it tells how often the queue was drained.",
		read: socket(func(c *forwarder.SocketStats) uint64 { return c.TXRingEmpty })},

	{name: "sluice_worker_received_packets_total", kind: counter, labels: []string{"worker"}, help: "Frames that the worker took from its queues.", use: "At rest it equals forwarded plus answered plus held plus all dropped.",
		read: worker(func(w *control.Worker) uint64 { return w.Received })},
	{name: "sluice_worker_answered_packets_total", kind: counter, labels: []string{"worker"}, help: "Frames that the worker answered itself: echo requests to a VIP.", use: "Pings. What exceeds the limit is dropped under echo_limit.",
		read: worker(func(w *control.Worker) uint64 { return w.Answered })},
	{name: "sluice_worker_generated_packets_total", kind: counter, labels: []string{"worker"}, help: "Frames sent beyond those forwarded and answered: ICMP errors and resets in place of packets that were dropped, the further pieces of packets that were fragmented, copies of ICMP errors for a second backend.", use: "Growth together with too_big means that the MTU towards the backends is too small for the outer headers.",
		read: worker(func(w *control.Worker) uint64 { return w.Generated })},
	{name: "sluice_worker_replies_packets_total", kind: counter, labels: []string{"worker"}, help: "Of the forwarded frames, those from NAT backends to clients.", use: "Only with forward: nat; about as many as go to the backends.",
		read: worker(func(w *control.Worker) uint64 { return w.Replies })},
	{name: "sluice_worker_held_packets", kind: gauge, labels: []string{"worker"}, help: "Fragments that wait for the first one of their datagram, 50 ms at most.", use: "Nearly always 0; at 64 further ones no longer wait.",
		read: worker(func(w *control.Worker) uint64 { return w.Held })},
	{name: "sluice_worker_forwarded_packets_total", kind: counter, labels: []string{"worker"}, help: "Frames that the worker forwarded.", use: "Its rate against received is the share that gets through.",
		read: worker(func(w *control.Worker) uint64 { return w.Forwarded })},
	{name: "sluice_worker_dropped_packets_total", kind: counter, labels: []string{"worker", "reason"}, help: "Frames that the worker did not forward, by reason; reasons that never occurred are left out.", use: "The first thing to look at when packets are lost; the reasons are below.",
		read: func(s *control.Status, e emit) {
			for _, w := range s.Traffic.Workers {
				for reason, n := range w.Dropped {
					e(float64(n), strconv.Itoa(w.ID), reason)
				}
			}
		}},
	{name: "sluice_worker_new_flows_total", kind: counter, labels: []string{"worker"}, help: "Flows that the worker put into the flow table.", use: "A jump without more traffic is a scan or an attack.",
		read: worker(func(w *control.Worker) uint64 { return w.NewFlows })},
	{name: "sluice_worker_observed_packets_total", kind: counter, labels: []string{"worker", "limit"}, help: "Packets that went on although they were over a limit (source, service, node) whose action is observe.", use: "What the limit would have dropped: look at it before you make it drop.",
		read: func(s *control.Status, e emit) {
			for _, w := range s.Traffic.Workers {
				id := strconv.Itoa(w.ID)
				e(float64(w.Observed.Source), id, "source")
				e(float64(w.Observed.Service), id, "service")
				e(float64(w.Observed.Node), id, "node")
			}
		}},
	{name: "sluice_worker_restarts_total", kind: counter, labels: []string{"worker"}, help: "Times the worker was started again after a fault.", use: "Alert on any growth: it is a fault of Sluice, and the log has the details.",
		read: worker(func(w *control.Worker) uint64 { return w.Restarts })},
	{name: "sluice_worker_frames", kind: gauge, labels: []string{"worker"}, help: "Frames in the worker's packet memory.", use: "A constant, for reference.",
		read: worker(func(w *control.Worker) uint64 { return uint64(w.Frames) })},

	{name: "sluice_flow_table_words", kind: gauge, help: "Capacity of the flow table in words; it is meant for half as many flows.", use: "Compare it with sluice_flow_table_flows.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Table.Words) })},
	{name: "sluice_flow_table_bytes", kind: gauge, help: "Memory of the flow table.", use: "A constant, for reference.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Table.Bytes) })},
	{name: "sluice_flow_table_huge_pages", kind: gauge, help: "1 if the flow table is in huge pages, else 0.", use: "0 costs speed with many flows: reserve huge pages (vm.nr_hugepages).",
		read: node(func(s *control.Status) float64 { return truth(s.Traffic.Table.HugePages) })},
	{name: "sluice_flow_table_live_flows", kind: gauge, help: "Flows in the table now.", use: "Half of sluice_flow_table_words is the time to raise `flows`; `sluice flows` says whose they are.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Table.Flows) })},
	{name: "sluice_flow_table_flows", kind: gauge, labels: []string{"state"}, help: "Flows in the table by state (probation, established, closing), at the last full sweep.", use: "Many on probation and few established is a scan or a flood: `sluice flows --top` names the sources.",
		read: func(s *control.Status, e emit) {
			e(float64(s.Traffic.Table.Probation), "probation")
			e(float64(s.Traffic.Table.Established), "established")
			e(float64(s.Traffic.Table.Closing), "closing")
		}},
	{name: "sluice_flow_table_idle_flows", kind: gauge, labels: []string{"below_seconds"}, help: "Flows in the table, at the last full sweep, that had had no packet for less than so many seconds, and not for less than the next lower number of them; +Inf for the rest.", use: "Flows that idle long hold words: shorten the service's `lifetimes` if they are dead ones.",
		read: func(s *control.Status, e emit) {
			for _, a := range s.Traffic.Table.Ages {
				below := "+Inf"
				if a.Below > 0 {
					below = strconv.FormatFloat(a.Below, 'f', 0, 64)
				}
				e(float64(a.Flows), below)
			}
		}},
	{name: "sluice_flow_table_expired_flows", kind: gauge, help: "Words that the last full sweep freed, since their time was over.", use: "For reference.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Table.Expired) })},
	{name: "sluice_flow_table_inserted_total", kind: counter, help: "Flows put into the table.", use: "The rate of new flows that have to be remembered.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Table.Inserted) })},
	{name: "sluice_flow_table_refused_total", kind: counter, help: "Flows that found no place in the table.", use: "Growth means that the table is full of active flows: new ones go by hash, and may move when backends change. Raise `flows`.",
		read: node(func(s *control.Status) float64 { return float64(s.Traffic.Table.Refused) })},
	{name: "sluice_flow_table_evicted_total", kind: counter, labels: []string{"class"}, help: "Flows that took the place of another in a full part of the table: of one whose time was over (expired), that was closing, on probation, or established and idle for more than five minutes.", use: "Growth of probation is a flood or a table that is too small, of established the latter: those flows may move when backends change. Raise `flows`.",
		read: func(s *control.Status, e emit) {
			v := s.Traffic.Table.Evicted
			e(float64(v.Expired), "expired")
			e(float64(v.Closing), "closing")
			e(float64(v.Probation), "probation")
			e(float64(v.Established), "established")
		}},

	{name: "sluice_health_stale", kind: gauge, help: "1 if no health report has come for ten seconds, though there is something to check, else 0.", use: "Alert on 1: the last known health is in use, and dead backends go unnoticed. Look at sluice-healthd.",
		read: node(func(s *control.Status) float64 { return truth(s.Health.Stale) })},
	{name: "sluice_health_report_age_seconds", kind: gauge, help: "Time since the last health report, or since the start.", use: "A few seconds at most while sluice-healthd runs.",
		read: node(func(s *control.Status) float64 { return float64(s.Health.AgeMS) / 1000 })},

	{name: "sluice_health_reporting", kind: gauge, help: "Where there is a service with a check: 1 if a health daemon has reported in the last ten seconds, else 0.", use: "Alert on 0: sluice-healthd does not run, or cannot reach the daemon.",
		read: func(s *control.Status, e emit) {
			for i := range s.Traffic.Services {
				if s.Traffic.Services[i].Checked {
					e(truth(s.Health.Source != "" && !s.Health.Stale))
					return
				}
			}
		}},
	{name: "sluice_events_total", kind: counter, labels: []string{"kind"}, help: "Events, by kind: health and hand (of a backend), service (fail open, quorum, what is ignored), flood, config, healthd.", use: "A jump is worth a look at `sluice events`.",
		read: func(s *control.Status, e emit) {
			for kind, n := range s.Events {
				e(float64(n), kind)
			}
		}},

	{name: "sluice_service_forwarded_packets_total", kind: counter, labels: []string{"service"}, help: "Packets of the service that were forwarded.", use: "The service's load.",
		read: service(func(s *control.Service) float64 { return float64(s.Forwarded.Packets) })},
	{name: "sluice_service_forwarded_bytes_total", kind: counter, labels: []string{"service"}, help: "IP bytes of these, as received.", use: "The service's load; with direct return, requests only.",
		read: service(func(s *control.Service) float64 { return float64(s.Forwarded.Bytes) })},
	{name: "sluice_service_new_flows_total", kind: counter, labels: []string{"service"}, help: "Flows of the service that were put into the table.", use: "A jump without more traffic is a scan or an attack.",
		read: service(func(s *control.Service) float64 { return float64(s.NewFlows) })},
	{name: "sluice_service_dropped_packets_total", kind: counter, labels: []string{"service", "reason"}, help: "Packets of the service that were not forwarded, by reason; reasons that never occurred are left out.", use: "Alert on growth of no_backend, no_route and no_neighbour.",
		read: func(s *control.Status, e emit) {
			for _, svc := range s.Traffic.Services {
				for reason, n := range svc.Dropped {
					e(float64(n), svc.Name, reason)
				}
			}
		}},
	{name: "sluice_service_fail_open", kind: gauge, labels: []string{"service"}, help: "1 if health is ignored for the service, since it would leave no backend, or fewer than its panic threshold says, else 0.", use: "Alert on 1: either its backends are down, or the checks are wrong.",
		read: service(func(s *control.Service) float64 { return truth(s.FailOpen) })},
	{name: "sluice_service_readiness_ignored", kind: gauge, labels: []string{"service"}, help: "1 if readiness is ignored for the service, since none of the backends that are alive is ready, else 0.", use: "Something that all of its backends depend on may be broken.",
		read: service(func(s *control.Service) float64 { return truth(s.ReadinessIgnored) })},
	{name: "sluice_service_ejections_ignored", kind: gauge, labels: []string{"service"}, help: "1 if ejections are ignored for the service, since all backends that are alive are ejected, else 0.", use: "Connections fail at all of its backends: look at what they have in common, and at the way to them.",
		read: service(func(s *control.Service) float64 { return truth(s.EjectionsIgnored) })},
	{name: "sluice_service_wanted_backends", kind: gauge, labels: []string{"service"}, help: "Backends that file and operator want to take new flows: weight above 0, not drained, not in maintenance.", use: "What healthy backends are to be compared with.",
		read: service(func(s *control.Service) float64 { return float64(s.Wanted) })},
	{name: "sluice_service_healthy_backends", kind: gauge, labels: []string{"service"}, help: "Those of them that are alive.", use: "Alert when it is less than half of sluice_service_wanted_backends.",
		read: service(func(s *control.Service) float64 { return float64(s.Quorum.Have) })},
	{name: "sluice_service_ejected_backends", kind: gauge, labels: []string{"service"}, help: "Backends that get no new flows for a while, since their traffic looked bad.", use: "`sluice health` says which, and what was seen.",
		read: service(func(s *control.Service) float64 { return float64(s.Ejected) })},
	{name: "sluice_service_quorum_met", kind: gauge, labels: []string{"service"}, help: "1 if as many backends are alive as the service's `quorum` says, else 0.", use: "Alert on 0: the service is not worth announcing from here.",
		read: service(func(s *control.Service) float64 { return truth(s.Quorum.Met) })},

	{name: "sluice_service_defence_active", kind: gauge, labels: []string{"service"}, help: "1 while the node answers SYNs, with a challenge or a cookie, else 0.", use: "With syn_defence: auto, 1 is a flood of SYNs.",
		read: service(func(s *control.Service) float64 { return truth(s.Defence.Active) })},
	{name: "sluice_service_cookies_ready", kind: gauge, labels: []string{"service"}, help: "Of services with syn_defence auto or cookie: 1 if all backends that take new flows accept SYN cookies, else 0.", use: "With cookie, alert on 0: connections to a backend without them are reset. `sluice status` says which and why.",
		read: func(s *control.Status, e emit) {
			for i := range s.Traffic.Services {
				if v := &s.Traffic.Services[i]; v.Cookies != "" {
					e(truth(v.Cookies == control.CookiesReady), v.Name)
				}
			}
		}},
	{name: "sluice_service_defence_switches_total", kind: counter, labels: []string{"service"}, help: "Times the service's defence was switched on, or off again, for a flood.", use: "Many are a flood that comes and goes.",
		read: service(func(s *control.Service) float64 { return float64(s.Defence.Switches) })},
	{name: "sluice_service_syns_total", kind: counter, labels: []string{"service"}, help: "SYNs of flows without a word, of services with a syn_defence.", use: "The rate of connection attempts.",
		read: service(func(s *control.Service) float64 { return float64(s.Defence.SYNs) })},
	{name: "sluice_service_challenged_total", kind: counter, labels: []string{"service"}, help: "SYNs that the node answered with a challenge or a cookie.", use: "Beside sluice_service_challenge_proofs_total: what exceeds it by far is spoofed.",
		read: service(func(s *control.Service) float64 { return float64(s.Defence.Challenged) })},
	{name: "sluice_service_challenge_proofs_total", kind: counter, labels: []string{"service"}, help: "Challenges that were answered, and cookies that came back.", use: "Clients that exist.",
		read: service(func(s *control.Service) float64 { return float64(s.Defence.Proofs) })},
	{name: "sluice_service_flows", kind: gauge, labels: []string{"service"}, help: "Flows in the table that are the service's, now.", use: "The service's open connections, as far as they were seen.",
		read: service(func(s *control.Service) float64 { return float64(s.Flows) })},
	{name: "sluice_service_table_info", kind: gauge, labels: []string{"service", "scheduler", "size", "hash"}, help: "Always 1; the labels name the service's scheduler and lookup table.", use: "Nodes of a group must have equal hashes, or flows that move between them break: alert when they differ for longer than a rollout takes.",
		read: func(s *control.Status, e emit) {
			for _, v := range s.Traffic.Services {
				e(1, v.Name, v.Scheduler, strconv.Itoa(v.TableSize), v.TableHash)
			}
		}},

	{name: "sluice_backend_forwarded_packets_total", kind: counter, labels: []string{"service", "backend"}, help: "Packets forwarded to the backend.", use: "Backends of a service that differ much have few clients, or long flows.",
		read: backend(func(b *control.Backend) uint64 { return b.Forwarded.Packets })},
	{name: "sluice_backend_forwarded_bytes_total", kind: counter, labels: []string{"service", "backend"}, help: "IP bytes of these, as received.", use: "The backend's load; with direct return, requests only.",
		read: backend(func(b *control.Backend) uint64 { return b.Forwarded.Bytes })},
	{name: "sluice_backend_new_flows_total", kind: counter, labels: []string{"service", "backend"}, help: "Flows to the backend that were put into the table.", use: "Falls to nothing while the backend is down.",
		read: backend(func(b *control.Backend) uint64 { return b.NewFlows })},
	{name: "sluice_backend_syns_total", kind: counter, labels: []string{"service", "backend"}, help: "SYNs to the backend, but those sent again, of services on TCP; at rates of which a worker cannot remember all, a sample of them.", use: "Connection attempts, also with direct return. SYNs that the node answers itself are not among them.",
		read: backend(func(b *control.Backend) uint64 { return b.SYNs })},
	{name: "sluice_backend_handshakes_total", kind: counter, labels: []string{"service", "backend"}, help: "Of these, those whose client went on with the connection: the backend has answered.", use: "If it falls behind sluice_backend_syns_total for one backend, that one does not answer; if for all, SYNs are forged, or replies do not reach the clients.",
		read: backend(func(b *control.Backend) uint64 { return b.Handshakes })},
	{name: "sluice_backend_syns_retransmitted_total", kind: counter, labels: []string{"service", "backend"}, help: "SYNs to the backend that clients sent again within seconds.", use: "Growth for one backend: it is overloaded or gone. For all: packets are lost on the way.",
		read: backend(func(b *control.Backend) uint64 { return b.Retransmitted })},
	{name: "sluice_backend_early_resets_total", kind: counter, labels: []string{"service", "backend"}, help: "Resets that clients sent within seconds of the handshake.", use: "Growth for one backend: clients do not like what it answers.",
		read: backend(func(b *control.Backend) uint64 { return b.Resets })},
	{name: "sluice_backend_unreachable_total", kind: counter, labels: []string{"service", "backend"}, help: "ICMP errors which say that packets cannot reach the backend, or that it does not take them; never any with l2, where clients get them.", use: "With a tunnel: the backend has no agent, or a firewall or router refuses the packets.",
		read: backend(func(b *control.Backend) uint64 { return b.Unreachable })},
	{name: "sluice_backend_flows", kind: gauge, labels: []string{"service", "backend"}, help: "Flows in the table that go to the backend, now.", use: "Before maintenance: how many connections are left.",
		read: backend(func(b *control.Backend) uint64 { return b.Flows })},
	{name: "sluice_backend_longest_idle_seconds", kind: gauge, labels: []string{"service", "backend"}, help: "For how long, at the last full sweep, one of the backend's flows had had no packet.", use: "While it drains: how long ago the most silent of its flows was heard of.",
		read: backendNumber(func(b *control.Backend) float64 { return b.LongestIdle })},
	{name: "sluice_backend_weight", kind: gauge, labels: []string{"service", "backend"}, help: "The weight that the configuration gives the backend; 0 takes no new flow.", use: "For reference.",
		read: backend(func(b *control.Backend) uint64 { return uint64(b.Weight) })},
	{name: "sluice_backend_fraction", kind: gauge, labels: []string{"service", "backend"}, help: "The share of the new flows meant for it that the backend takes: 1, and less in a slow start; 0 when it takes none.", use: "For reference.",
		read: backendNumber(func(b *control.Backend) float64 { return b.Fraction })},
	{name: "sluice_backend_drained_by_hand", kind: gauge, labels: []string{"service", "backend"}, help: "1 if an operator drains the backend (sluice drain), else 0.", use: "A drain that was forgotten shows here.",
		read: backend(func(b *control.Backend) uint64 { return uint64(truth(b.Hand.Drained())) })},
	{name: "sluice_backend_maintenance", kind: gauge, labels: []string{"service", "backend"}, help: "1 if an operator has put the backend into maintenance (sluice maintenance), else 0.", use: "Maintenance that was forgotten shows here; alerts leave such backends out by their phase.",
		read: known(func(b *control.Backend) float64 { return truth(b.Hand.InMaintenance()) })},
	{name: "sluice_backend_phase", kind: gauge, labels: []string{"service", "backend", "phase"}, help: "Always 1; the label is the one word for how the backend stands: maintenance, draining, unknown, down, going_up, ejected, unready, going_down, slow_start or up.", use: "Alert on phase=\"down\": a backend that is drained or in maintenance has another.",
		read: func(s *control.Status, e emit) {
			for i := range s.Traffic.Services {
				svc := &s.Traffic.Services[i]
				for j := range svc.Backends {
					if b := &svc.Backends[j]; !b.Leaving && b.Phase != "" {
						e(1, svc.Name, b.Name, string(b.Phase))
					}
				}
			}
		}},
	{name: "sluice_backend_switches_total", kind: counter, labels: []string{"service", "backend"}, help: "Times that health has taken the backend into rotation or out of it.", use: "Alert on many in a short time: it flaps. `sluice health` shows what the probes saw.",
		read: known(func(b *control.Backend) float64 { return float64(b.Switches) })},
	{name: "sluice_backend_ready", kind: gauge, labels: []string{"service", "backend"}, help: "1 if the backend wants new flows, by its readiness check and by what it asks for, else 0.", use: "0 is the backend's own wish, or its readiness check fails.",
		read: known(func(b *control.Backend) float64 {
			return truth(b.Health.Unready == "" && (b.Health.Asks == nil || *b.Health.Asks > 0))
		})},
	{name: "sluice_backend_asks_percent", kind: gauge, labels: []string{"service", "backend"}, help: "The percentage of its share of new flows that the backend asks for; 100 where it has not asked.", use: "How loaded it says that it is.",
		read: known(func(b *control.Backend) float64 {
			if b.Health.Asks == nil {
				return 100
			}
			return float64(*b.Health.Asks)
		})},
	{name: "sluice_backend_ejected", kind: gauge, labels: []string{"service", "backend"}, help: "1 while the backend gets no new flows since its traffic looked bad, else 0.", use: "Connections fail there though its check may be fine. `sluice health` says what was seen.",
		read: known(func(b *control.Backend) float64 { return truth(b.Health.EjectedMS > 0) })},
	{name: "sluice_probe_good_total", kind: counter, labels: []string{"service", "backend", "check"}, help: "Good probes of the backend, of its check and of its readiness check, since the health daemon began with it.", use: "Beside sluice_probe_bad_total.",
		read: probes(func(p *control.ProbeStats, e emit, labels ...string) { e(float64(p.Good), labels...) })},
	{name: "sluice_probe_bad_total", kind: counter, labels: []string{"service", "backend", "check"}, help: "Bad probes, likewise.", use: "Some now and then, and the backend stays up: probes are lost, or it is slow at times.",
		read: probes(func(p *control.ProbeStats, e emit, labels ...string) { e(float64(p.Bad), labels...) })},
	{name: "sluice_probe_latency_seconds", kind: gauge, labels: []string{"service", "backend", "check", "quantile"}, help: "How long good probes of the last minutes took, at these quantiles (0.5, 0.9, 0.99).", use: "Growth comes before failure: near the check's timeout, probes begin to fail.",
		read: probes(func(p *control.ProbeStats, e emit, labels ...string) {
			if p.P50 == 0 {
				return
			}
			for _, q := range []struct {
				quantile string
				us       uint32
			}{{"0.5", p.P50}, {"0.9", p.P90}, {"0.99", p.P99}} {
				e(float64(q.us)/1e6, append(labels, q.quantile)...)
			}
		})},
	{name: "sluice_backend_takes_new_flows", kind: gauge, labels: []string{"service", "backend"}, help: "1 if new flows go to the backend, else 0.", use: "0 is a backend that is down, drains, or waits for its first good probe.",
		read: backend(func(b *control.Backend) uint64 { return uint64(truth(b.Admit == "up")) })},
	{name: "sluice_backend_reachable", kind: gauge, labels: []string{"service", "backend"}, help: "1 if the node has a route to the backend and its next hop answers, else 0.", use: "Alert on 0: packets to it are dropped under no_route or no_neighbour.",
		read: backend(func(b *control.Backend) uint64 { return uint64(truth(b.Hop == "ready")) })},
	{name: "sluice_backend_health", kind: gauge, labels: []string{"service", "backend", "state"}, help: "1 for the state of health that the backend is in (up, going_down, down, going_up, unknown, none), 0 for the others.", use: "Of backends in maintenance too; `sluice health` shows what the probes saw.",
		read: func(s *control.Status, e emit) {
			for _, svc := range s.Traffic.Services {
				for _, b := range oneOfEachName(svc.Backends) {
					for _, state := range healthStates {
						e(truth(b.Health.State == state), svc.Name, b.Name, string(state))
					}
				}
			}
		}},
}

// healthStates are all states of health.
var healthStates = []control.State{
	control.StateUp, control.StateGoingDown, control.StateDown, control.StateGoingUp, control.StateUnknown, control.StateNone,
}

func init() {
	for _, m := range table {
		m.desc = prometheus.NewDesc(m.name, m.help, m.labels, nil)
	}
}
