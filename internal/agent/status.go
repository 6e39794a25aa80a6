//go:build linux

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Status is what an agent does in a network namespace, or what a killed one left there.
type Status struct {
	Running    bool         `json:"running"`    // an agent keeps it up; false: what is below was left by a killed one
	PID        int          `json:"pid"`        // of the agent
	VIPs       []netip.Addr `json:"vips"`       // that are answered for
	Added      []netip.Addr `json:"vips_added"` // of these, put on loopback by an agent
	Interfaces []string     `json:"interfaces"` // that encapsulated packets are taken on
	Sysctls    []string     `json:"sysctls"`    // set by an agent, with the value from before
	Packets    Counters     `json:"packets"`    // counted by the attached program
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
	out := Status{Running: running, PID: st.PID, VIPs: st.VIPs, Added: append([]netip.Addr{}, st.Added...),
		Interfaces: []string{}, Sysctls: []string{}}
	for _, s := range st.Settings {
		out.Sysctls = append(out.Sysctls, s.String())
	}
	// All interfaces have the same program, but for the moment in which a killed agent's is replaced.
	for i, a := range st.Programs {
		out.Interfaces = append(out.Interfaces, a.Interface)
		if i > 0 {
			continue
		}
		if out.Packets, err = programCounters(a); err != nil {
			return Status{}, err
		}
	}
	return out, nil
}

// programCounters reads the counters of an attached program; zeros if it has just gone.
func programCounters(a attachment) (Counters, error) {
	p, err := openAttached(a)
	if err != nil || p == nil {
		return Counters{}, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return Counters{}, fmt.Errorf("read program %d: %w", a.Program, err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return Counters{}, fmt.Errorf("open map %d: %w", id, err)
		}
		defer m.Close()
		if mi, err := m.Info(); err == nil && mi.Name == decapMapCounts {
			return readCounters(m)
		}
	}
	return Counters{}, fmt.Errorf("read program %d: it has no counters; is it of this version?", a.Program)
}
