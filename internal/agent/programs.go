//go:build linux

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/agent/capability"
)

// Counters are the books of the two programs since they were loaded, in packets as they were on the wire. Packets that
// arrive and are neither IP-in-IP nor GUE to this host are in none of them.
type Counters struct {
	DecapsulatedIPv4 uint64 `json:"decapsulated_ipv4"` // inner IPv4 packets given to the kernel
	DecapsulatedIPv6 uint64 `json:"decapsulated_ipv6"` // inner IPv6 packets given to the kernel
	NotVIP           uint64 `json:"not_vip"`           // the inner destination is not a VIP: untouched
	Fragment         uint64 `json:"fragment"`          // a fragment of an outer packet: untouched
	Malformed        uint64 `json:"malformed"`         // a header is cut short or wrong: untouched
	Merged           uint64 `json:"merged"`            // GUE packets that the interface merged into one: untouched
	Source           uint64 `json:"source"`            // to a VIP, from a source that is not allowed: dropped
	ECN              uint64 `json:"ecn"`               // RFC 6040 says to drop it: dropped
	Failed           uint64 `json:"failed"`            // the kernel refused to take the headers off: dropped
	Clamped          uint64 `json:"clamped"`           // SYN-ACKs sent from a VIP whose MSS was lowered

	// Of SYN cookies, in segments. Those that are not accepted are left alone, and the kernel resets the connection.
	CookieAccepted uint64 `json:"cookie_accepted"`  // connections made of a valid cookie
	CookieBad      uint64 `json:"cookie_bad"`       // segments without a valid cookie that met a listener
	CookieTimeWait uint64 `json:"cookie_time_wait"` // valid cookies that met, and ended, an older connection in TIME_WAIT
	CookieRefused  uint64 `json:"cookie_refused"`   // valid, refused by the kernel (EINVAL): the listener is MPTCP, or a sysctl
	CookieNoMemory uint64 `json:"cookie_no_memory"` // valid, and the kernel had no memory (ENOMEM)
	CookieFailed   uint64 `json:"cookie_failed"`    // valid, and the kernel had another error
}

// LogValue makes a group of the counters.
func (c Counters) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Uint64("decapsulated_ipv4", c.DecapsulatedIPv4), slog.Uint64("decapsulated_ipv6", c.DecapsulatedIPv6),
		slog.Uint64("not_vip", c.NotVIP), slog.Uint64("fragment", c.Fragment), slog.Uint64("malformed", c.Malformed),
		slog.Uint64("merged", c.Merged), slog.Uint64("source", c.Source), slog.Uint64("ecn", c.ECN),
		slog.Uint64("failed", c.Failed), slog.Uint64("clamped", c.Clamped),
		slog.Uint64("cookie_accepted", c.CookieAccepted), slog.Uint64("cookie_bad", c.CookieBad),
		slog.Uint64("cookie_time_wait", c.CookieTimeWait), slog.Uint64("cookie_refused", c.CookieRefused),
		slog.Uint64("cookie_no_memory", c.CookieNoMemory), slog.Uint64("cookie_failed", c.CookieFailed))
}

// programs are the two loaded programs and their maps. Attached or not is the host's business.
type programs struct {
	objs       agentObjects
	decap      ebpf.ProgramID
	clamp      ebpf.ProgramID
	addresses  map[netip.Addr]bool // in the map now
	parameters parameters          // in the map now
	clock      time.Duration       // in the map of cookies now; 0: none
}

// parameters is struct parameters of bpf/common.h: what may change while the programs run. 0: off.
type parameters struct {
	GUEPort uint16
	MSS     MSS
}

// sourceKey is struct prefix of bpf/common.h.
type sourceKey struct {
	Bits    uint32
	Address [16]byte
}

// loadPrograms loads the programs for VIPs, NAT, sources and a secret that stay as they are. No sources: any. No secret: SYN
// cookies are nothing that they know of, and NAT is of no effect.
func loadPrograms(vips []netip.Addr, nat []capability.Mapping, sources []netip.Prefix, secret *[32]byte) (*programs, error) {
	keys := []sourceKey{{}} // ::/0 matches v4-mapped addresses too
	if len(sources) > 0 {
		keys = keys[:0]
		for _, s := range sources {
			key := sourceKey{Bits: uint32(s.Bits()), Address: s.Addr().As16()}
			if s.Addr().Is4() {
				key.Bits += 96
			}
			keys = append(keys, key)
		}
	}
	spec, err := loadAgent()
	if err != nil {
		return nil, fmt.Errorf("load BPF programs: %w", err)
	}
	spec.Maps[agentMapVips].MaxEntries = uint32(max(len(vips), 1)) // the kernel makes no map for none
	spec.Maps[agentMapNats].MaxEntries = uint32(max(len(nat), 1))
	spec.Maps[agentMapSources].MaxEntries = uint32(len(keys))

	for name, on := range map[string]bool{agentVarAcceptCookies: secret != nil, agentVarAcceptNat: secret != nil && len(nat) > 0} {
		if !on {
			continue
		}
		if err := spec.Variables[name].Set(uint8(1)); err != nil {
			return nil, fmt.Errorf("load BPF programs: %w", err)
		}
	}

	p := &programs{addresses: map[netip.Addr]bool{}}
	opts := &ebpf.CollectionOptions{}
	if secret == nil {
		opts.Programs.KernelTypes = spec.Types // what reads the kernel's structs is removed: its types need not be known
	}
	if err := spec.LoadAndAssign(&p.objs, opts); err != nil {
		return nil, fmt.Errorf("load BPF programs: %w%s", err, hint(err))
	}
	for program, id := range map[*ebpf.Program]*ebpf.ProgramID{p.objs.SluiceDecap: &p.decap, p.objs.SluiceClamp: &p.clamp} {
		info, err := program.Info()
		if err != nil {
			p.close()
			return nil, fmt.Errorf("read BPF program: %w", err)
		}
		*id, _ = info.ID()
	}
	for _, vip := range vips {
		if err := p.objs.Vips.Put(vip.As16(), uint8(1)); err != nil {
			p.close()
			return nil, fmt.Errorf("add VIP %s to BPF map: %w", vip, err)
		}
	}
	for _, m := range nat {
		if err := p.objs.Nats.Put(endpointOf(m.Local), endpointOf(m.VIP)); err != nil {
			p.close()
			return nil, fmt.Errorf("add NAT %v to BPF map: %w", m, err)
		}
	}
	for i := range keys {
		if err := p.objs.Sources.Put(&keys[i], uint8(1)); err != nil {
			p.close()
			return nil, fmt.Errorf("add source to BPF map: %w", err)
		}
	}
	if secret != nil {
		if _, err := p.setCookies(secret); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// setAddresses makes these the outer destinations that are taken. Those that stay are taken throughout.
func (p *programs) setAddresses(addrs []netip.Addr) error {
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		want[a] = true
		if p.addresses[a] {
			continue
		}
		if err := p.objs.Addresses.Put(a.As16(), uint8(1)); err != nil {
			return fmt.Errorf("add address %s to BPF map: %w; name the one that nodes send to with --address", a, err)
		}
		p.addresses[a] = true
	}
	for a := range p.addresses {
		if want[a] {
			continue
		}
		if err := p.objs.Addresses.Delete(a.As16()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove address %s from BPF map: %w", a, err)
		}
		delete(p.addresses, a)
	}
	return nil
}

// setParameters makes the programs go by these from the next packet on.
func (p *programs) setParameters(now parameters) error {
	if now == p.parameters {
		return nil
	}
	if err := p.objs.Settings.Put(uint32(0), agentParameters{GuePort: now.GUEPort, MssIpv4: now.MSS.IPv4, MssIpv6: now.MSS.IPv6}); err != nil {
		return fmt.Errorf("write BPF map: %w", err)
	}
	p.parameters = now
	return nil
}

func readParameters(m *ebpf.Map) (parameters, error) {
	var now agentParameters
	if err := m.Lookup(uint32(0), &now); err != nil {
		return parameters{}, fmt.Errorf("read parameters: %w", err)
	}
	return parameters{GUEPort: now.GuePort, MSS: MSS{IPv4: now.MssIpv4, IPv6: now.MssIpv6}}, nil
}

// counters sums up what the CPUs counted.
func (p *programs) counters() (Counters, error) { return readCounters(p.objs.Counts) }

func readCounters(m *ebpf.Map) (Counters, error) {
	var perCPU []agentCounters
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	var sum Counters
	for _, c := range perCPU {
		sum.DecapsulatedIPv4 += c.DecapsulatedIpv4
		sum.DecapsulatedIPv6 += c.DecapsulatedIpv6
		sum.NotVIP += c.NotVip
		sum.Fragment += c.Fragment
		sum.Malformed += c.Malformed
		sum.Merged += c.Merged
		sum.Source += c.Source
		sum.ECN += c.Ecn
		sum.Failed += c.Failed
		sum.Clamped += c.Clamped
		sum.CookieAccepted += c.CookieAccepted
		sum.CookieBad += c.CookieBad
		sum.CookieTimeWait += c.CookieTimeWait
		sum.CookieRefused += c.CookieRefused
		sum.CookieNoMemory += c.CookieNoMemory
		sum.CookieFailed += c.CookieFailed
	}
	return sum, nil
}

// attach puts the ingress or egress program first on an interface, or in the place of old without a gap between the
// two. It is attached without a BPF link on purpose: a link would be gone with a killed agent, and the backend with it.
func (p *programs) attach(a attachment, old *ebpf.Program) error {
	anchor := link.Head()
	if old != nil {
		anchor = link.ReplaceProgram(old)
	}
	program := p.objs.SluiceDecap
	if a.Egress {
		program = p.objs.SluiceClamp
	}
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: a.Link, Program: program, Attach: a.hook(), Anchor: anchor})
	if err != nil {
		return fmt.Errorf("attach to %s of %s: %w%s", a.hook(), a.Interface, err, hint(err))
	}
	return nil
}

func (p *programs) close() { p.objs.Close() }

// detach takes a program off an interface; nil also if it is not there or the interface has gone.
func detach(a attachment, p *ebpf.Program) error {
	err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: a.Link, Program: p, Attach: a.hook()})
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("detach from %s: %w", a.Interface, err)
}

// attached returns the IDs of the programs at one hook of an interface. It also finds out whether the kernel has tcx.
func attached(l hostLink, hook ebpf.AttachType) ([]ebpf.ProgramID, error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: l.index, Attach: hook})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("query programs of %s: %w; this kernel has no tcx: Linux 6.6 or newer is needed", l.name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("query programs of %s: %w%s", l.name, err, hint(err))
	}
	var ids []ebpf.ProgramID
	for _, p := range res.Programs {
		ids = append(ids, p.ID)
	}
	return ids, nil
}

// openAttached opens a program of a killed agent; nil if it is no longer there. IDs are given again only after four
// billion programs, but the name costs nothing to compare.
func openAttached(a attachment) (*ebpf.Program, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(a.Program))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		what := ""
		if errors.Is(err, unix.EPERM) {
			what = "; to take the place of an agent that was killed, CAP_SYS_ADMIN is needed"
		}
		return nil, fmt.Errorf("open program %d on %s: %w%s", a.Program, a.Interface, err, what)
	}
	info, err := p.Info()
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("read program %d: %w", a.Program, err)
	}
	if want := map[bool]string{false: agentProgSluiceDecap, true: agentProgSluiceClamp}[a.Egress]; info.Name != want {
		p.Close()
		return nil, nil
	}
	return p, nil
}

// hint is the cure of the classic failure.
func hint(err error) string {
	if errors.Is(err, unix.EPERM) {
		return "; run as root, or with CAP_BPF and CAP_NET_ADMIN"
	}
	return ""
}
