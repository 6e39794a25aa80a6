package steer

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/safchain/ethtool"
)

const (
	maxVLAN = 4094 // 4095 is reserved (IEEE 802.1Q)

	// The kernel's name of the offload that takes 802.1Q tags off received frames, and ethtool's for its -K option.
	tagOffload       = "rx-vlan-hw-parse"
	tagOffloadOption = "rxvlan"
	tagOffloadHarm   = "the NIC takes VLAN tags off received frames before XDP sees them"
)

// features is the part of ethtool that is needed here.
type features interface {
	FeaturesWithState(name string) (map[string]ethtool.FeatureState, error)
	Change(name string, config map[string]bool) error
}

// keepTags has an interface leave VLAN tags in the frames that it receives.
func keepTags(name string, log *slog.Logger) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("read the offloads of %s: %w", name, err)
	}
	defer e.Close()
	return turnTagOffloadOff(e, name, log)
}

func turnTagOffloadOff(e features, name string, log *slog.Logger) error {
	states, err := e.FeaturesWithState(name)
	if err != nil {
		return fmt.Errorf("read the offloads of %s: %w", name, err)
	}
	state := states[tagOffload]
	if !state.Active {
		return nil
	}
	if err := changeTagOffload(e, name, state); err != nil {
		return fmt.Errorf("%s; turn that off with: ethtool -K %s %s off: %w", tagOffloadHarm, name, tagOffloadOption, err)
	}
	log.Info("VLAN tag offload turned off: "+tagOffloadHarm, "interface", name, "offload", tagOffloadOption)
	return nil
}

func changeTagOffload(e features, name string, state ethtool.FeatureState) error {
	if !state.Available || state.NeverChanged {
		return errors.New("the driver cannot change it")
	}
	if err := e.Change(name, map[string]bool{tagOffload: false}); err != nil {
		return err
	}
	states, err := e.FeaturesWithState(name)
	if err == nil && states[tagOffload].Active {
		err = errors.New("the driver refuses without a word")
	}
	return err
}
