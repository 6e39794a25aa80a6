//go:build linux

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/agent/capability"
)

// Status is what an agent does in a network namespace, or what a killed one left there.
type Status struct {
	Running    bool                 `json:"running"`    // an agent keeps it up; false: what is below was left by a killed one
	PID        int                  `json:"pid"`        // of the agent
	VIPs       []netip.Addr         `json:"vips"`       // that are answered for
	NAT        []capability.Mapping `json:"nat"`        // that SYN cookies are accepted by
	Listen     string               `json:"listen"`     // where others ask the agent; "": nowhere
	Added      []netip.Addr         `json:"vips_added"` // of the VIPs, put on loopback by an agent
	Interfaces []string             `json:"interfaces"` // that encapsulated packets are taken on
	GUEPort    uint16               `json:"gue_port"`   // UDP port that GUE is taken on, beside IP-in-IP; 0: none
	ClampMSS   MSS                  `json:"clamp_mss"`  // the largest MSS that SYN-ACKs from the VIPs leave with; 0: any
	Cookies    bool                 `json:"cookies"`    // connections are made of nodes' SYN cookies
	Sysctls    []string             `json:"sysctls"`    // set by an agent, with the value from before
	Packets    Counters             `json:"packets"`    // counted by the attached programs
}

// ErrNoAgent is returned by ReadStatus where no agent runs and none has left anything.
var ErrNoAgent = errors.New("no sluice-agent runs in this network namespace, and none has left anything")

// ReadStatus tells about the calling thread's network namespace. It needs CAP_SYS_ADMIN, to open the attached program.
func ReadStatus(stateDir string) (Status, error) {
	s, err := newStore(stateDir)
	if err != nil {
		return Status{}, err
	}
	running := s.running()
	st, err := s.load()
	if err != nil {
		return Status{}, err
	}
	if st.Boot == "" {
		return Status{}, ErrNoAgent
	}
	// Lists that are empty, not null, in JSON.
	out := Status{Running: running, PID: st.PID, VIPs: append([]netip.Addr{}, st.VIPs...), NAT: append([]capability.Mapping{}, st.NAT...),
		Added: append([]netip.Addr{}, st.Added...), Interfaces: []string{}, Sysctls: []string{}}
	if running {
		out.Listen = st.Listen
	}
	for _, s := range st.Settings {
		out.Sysctls = append(out.Sysctls, s.String())
	}
	// All interfaces have the same two programs with the same maps, but for the moment in which a killed agent's are
	// replaced.
	for i, a := range st.Programs {
		if !slices.Contains(out.Interfaces, a.Interface) {
			out.Interfaces = append(out.Interfaces, a.Interface)
		}
		if i > 0 {
			continue
		}
		now, err := readProgram(a, &out)
		if err != nil {
			return Status{}, err
		}
		out.GUEPort, out.ClampMSS = now.GUEPort, now.MSS
	}
	return out, nil
}

// readProgram reads what an attached program counted and goes by; zeros if it has just gone.
func readProgram(a attachment, out *Status) (now parameters, err error) {
	p, err := openAttached(a)
	if err != nil || p == nil {
		return parameters{}, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return parameters{}, fmt.Errorf("read program %d: %w", a.Program, err)
	}
	ids, _ := info.MapIDs()
	found := 0
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return parameters{}, fmt.Errorf("open map %d: %w", id, err)
		}
		defer m.Close()
		mi, err := m.Info()
		if err != nil {
			return parameters{}, fmt.Errorf("read map %d: %w", id, err)
		}
		switch mi.Name {
		case agentMapCounts:
			out.Packets, err = readCounters(m)
			found++
		case agentMapCookies:
			out.Cookies, err = readAccepts(m)
			found++
		case agentMapSettings:
			now, err = readParameters(m)
			found++
		}
		if err != nil {
			return parameters{}, err
		}
	}
	if found != 3 {
		return parameters{}, fmt.Errorf("read program %d: it has no counters or settings; is it of this version?", a.Program)
	}
	return now, nil
}
