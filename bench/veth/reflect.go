//go:build linux

package veth

import (
	"context"
	"errors"

	"github.com/cilium/ebpf/link"
)

// reflect is the least that can be done with frames.
var reflect = &System{
	Name:  "reflect",
	what:  "an XDP program swaps the MACs and sends back (XDP_TX), all on the first core",
	peer:  "sluice",
	start: startReflect,
}

func startReflect(_ context.Context, r *Rig) (stop func() error, err error) {
	dev, err := r.system.Link(eth)
	if err != nil {
		return nil, err
	}
	var objects reflectObjects
	if err := loadReflectObjects(&objects, nil); err != nil {
		return nil, err
	}
	var l link.Link
	err = r.system.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: objects.Reflect, Interface: dev.Attrs().Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	return func() error { return errors.Join(l.Close(), objects.Close()) }, nil
}
