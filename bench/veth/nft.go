//go:build linux

package veth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// The kernel's own forwarding, with addresses translated by nftables.
var (
	nftStateless = &System{
		Name: "nft-stateless",
		what: "the kernel's forwarding; nftables writes the address of one of four backends into each packet, by a hash, " +
			"without connection tracking",
		peer:    "sluice",
		start:   startNFT(statelessRules, false),
		needs:   nftNeeds,
		version: firstLine("nft", "--version"),
	}
	nftStateful = &System{
		Name:    "nft-stateful",
		what:    "the kernel's forwarding; nftables DNAT to one of four backends, with connection tracking",
		peer:    "sluice",
		start:   startNFT(statefulRules, true),
		needs:   nftNeeds,
		version: firstLine("nft", "--version"),
	}
	nftNeeds = []need{{"nftables", "nft"}}
)

const (
	// The raw hook comes before connection tracking, which nothing else in the namespace asks for.
	statelessRules = `table ip lb {
	chain prerouting {
		type filter hook prerouting priority raw;
		ip daddr %[1]v udp dport %[2]d ip daddr set jhash ip saddr . udp sport mod %[3]d map { %[4]s } notrack
	}
}
`
	statefulRules = `table ip lb {
	chain prerouting {
		type nat hook prerouting priority dstnat;
		ip daddr %[1]v udp dport %[2]d dnat to jhash ip saddr . udp sport mod %[3]d map { %[4]s }
	}
}
`
)

func startNFT(rules string, tracking bool) func(context.Context, *Rig) (func() error, error) {
	return func(_ context.Context, r *Rig) (func() error, error) {
		var undo []func() error
		stop := func() (err error) {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
			return err
		}
		for _, f := range []func() (func() error, error){
			func() (func() error, error) { return r.growTracking(tracking) },
			r.forward,
			r.steer,
			func() (func() error, error) { return r.load(rules) },
		} {
			u, err := f()
			if err != nil {
				return nil, errors.Join(err, stop())
			}
			undo = append(undo, u)
		}
		return stop, nil
	}
}

// forward makes the kernel a router, and lets the interface take live frames without an XDP program, which GRO does.
func (r *Rig) forward() (undo func() error, err error) {
	set := func(on bool) error {
		value := map[bool]string{true: "1", false: "0"}[on]
		return errors.Join(r.system.SetSysctl("net/ipv4/ip_forward", value),
			r.system.SetFeatures(eth, map[string]bool{testenv.SoftMerge: on}))
	}
	for _, a := range backendList() { // known from the first packet on, as a router's neighbours usually are
		if err := r.system.AddNeighbour(eth, a, worldMAC); err != nil {
			return nil, err
		}
	}
	return func() error { return set(false) }, set(true)
}

// steer has what the interface receives handled on the system's core, from the stack on.
func (r *Rig) steer() (undo func() error, err error) {
	set := func(mask uint64) error {
		_, err := r.system.Run(5*time.Second, testenv.Cmd{Path: "/bin/sh", Args: []string{"-c",
			fmt.Sprintf("echo %x > /sys/class/net/%s/queues/rx-0/rps_cpus", mask, eth)}})
		return err
	}
	return func() error { return set(0) }, set(1 << r.cores.system)
}

// load loads rules; undoing it removes them, and what was tracked for them vanishes with its time or the namespace.
func (r *Rig) load(rules string) (undo func() error, err error) {
	var m []string
	for i, a := range backendList() {
		m = append(m, fmt.Sprintf("%d : %v", i, a))
	}
	nft := func(text string) error {
		_, err := r.system.Run(10*time.Second, testenv.Cmd{Path: "nft", Args: []string{"-f", "-"}, Stdin: strings.NewReader(text)})
		return err
	}
	return func() error { return nft("delete table ip lb\n") },
		nft(fmt.Sprintf(rules, vip, port, backends, strings.Join(m, ", ")))
}

// The limit of tracked connections and the size of their table are those of the whole machine.
const trackingMax, trackingBuckets = "/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_buckets"

// growTracking makes room for all flows, as who wants to have so many would.
func (r *Rig) growTracking(wanted bool) (undo func() error, err error) {
	undo = func() error { return nil }
	if !wanted {
		return undo, nil
	}
	for _, file := range []string{trackingMax, trackingBuckets} {
		text, err := os.ReadFile(file)
		if err != nil {
			return undo, err
		}
		before := strings.TrimSpace(string(text))
		n, err := strconv.Atoi(before)
		if err != nil {
			return undo, fmt.Errorf("read %s: %w", file, err)
		}
		if n >= r.room() {
			continue
		}
		if err := os.WriteFile(file, []byte(strconv.Itoa(r.room())), 0); err != nil {
			return undo, err
		}
		inner := undo
		undo = func() error { return errors.Join(os.WriteFile(file, []byte(before), 0), inner()) }
	}
	return undo, nil
}
