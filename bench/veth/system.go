//go:build linux

package veth

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// System is something that forwards frames.
type System struct {
	Name string
	what string // a clause for the notes
	wire bool   // frames are to be counted where the system would be, since there is none
	// peer is the system that this one is compared with.
	peer string
	// start starts it. The interface eth0 of r.system has no XDP program then, and is to have its default features after stop.
	start func(ctx context.Context, r *Rig) (stop func() error, err error)
	needs []need
	// version asks the peer's program for it; nil: it is a part of this one, or of the kernel.
	version func() (string, error)
}

// systems are all there are, in the order of their turns.
var systems = []*System{direct, reflect, sluice, fastPath, testpmd, asavieReflector, sluiceOnAsavie, nftStateless, nftStateful}

// Names are the names of all systems.
func Names() []string {
	var names []string
	for _, s := range systems {
		names = append(names, s.Name)
	}
	return names
}

// choose returns the systems with these names, in the order of their turns; all of them if there are no names.
func choose(names []string) ([]*System, error) {
	if len(names) == 0 {
		return systems, nil
	}
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[name] = true
	}
	var chosen []*System
	for _, s := range systems {
		if wanted[s.Name] {
			chosen = append(chosen, s)
			delete(wanted, s.Name)
		}
	}
	for name := range wanted {
		return nil, fmt.Errorf("unknown system %q; there are %s", name, strings.Join(Names(), ", "))
	}
	return chosen, nil
}

// need is a Debian package, told by a file of it: a program in PATH, or a pattern of paths.
type need struct{ name, file string }

func (n need) installed() bool {
	if strings.Contains(n.file, "/") {
		found, _ := filepath.Glob(n.file) // its only error is a bad pattern
		return len(found) > 0
	}
	_, err := exec.LookPath(n.file)
	return err == nil
}

// missing says which packages the system needs; empty: nothing is missing.
func (s *System) missing() string {
	var names []string
	for _, n := range s.needs {
		if !n.installed() {
			names = append(names, n.name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "needs Debian package " + strings.Join(names, ", ")
}

// firstLine is the version that a program prints.
func firstLine(program string, args ...string) func() (string, error) {
	return func() (string, error) {
		out, err := exec.Command(program, args...).Output()
		line, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(line), err
	}
}

// direct is no system at all.
var direct = &System{
	Name: "direct",
	what: "nothing: frames are counted at the other end of the cable",
	wire: true,
	start: func(context.Context, *Rig) (func() error, error) {
		return func() error { return nil }, nil
	},
}
