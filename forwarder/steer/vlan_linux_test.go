package steer

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// vlanCases are frames on an interface of VLAN 5, and on one without.
func vlanCases(t testing.TB) (of5, ofNone []verdictCase) {
	t.Helper()
	tag := func(id uint16, typ layers.EthernetType) *layers.Dot1Q {
		return &layers.Dot1Q{VLANIdentifier: id, Type: typ}
	}
	frame := func(outer layers.EthernetType, rest ...gopacket.SerializableLayer) []byte {
		return build(t, append([]gopacket.SerializableLayer{ether(ownMAC, outer)}, rest...)...)
	}
	const q, qinq, v4, v6 = layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ, layers.EthernetTypeIPv4, layers.EthernetTypeIPv6
	to4, to6 := ip4(vip4, protoTCP), ip6(vip6, protoTCP)
	untagged4, untagged6 := frame(v4, to4, tcp), frame(v6, to6, tcp)
	none4, none6 := frame(q, tag(0, v4), to4, tcp), frame(q, tag(0, v6), to6, tcp)
	five4, five6 := frame(q, tag(5, v4), to4, tcp), frame(q, tag(5, v6), to6, tcp)
	full := frame(q, &layers.Dot1Q{VLANIdentifier: 5, Priority: 7, DropEligible: true, Type: v4}, to4, tcp)
	priority := frame(q, &layers.Dot1Q{Priority: 7, DropEligible: true, Type: v4}, to4, tcp)
	twice, inNone := frame(q, tag(5, q), tag(5, v4), to4, tcp), frame(q, tag(0, q), tag(5, v4), to4, tcp)
	service := frame(qinq, tag(5, v4), to4, tcp)
	arp := frame(q, tag(5, layers.EthernetTypeARP), payload, payload)

	// name, frame, and from where on it is taken by an interface of VLAN 5 and by one without.
	for _, c := range []struct {
		name         string
		frame        []byte
		five, ofNone int
	}{
		{"untagged IPv4", untagged4, 0, 34},
		{"untagged IPv6", untagged6, 0, 54},
		{"tag 0, IPv4", none4, 0, 38},
		{"tag 0, IPv6", none6, 0, 58},
		{"tag 0 with a priority", priority, 0, 38},
		{"tag 5, IPv4", five4, 38, 0},
		{"tag 5, IPv6", five6, 58, 0},
		{"tag 5 with a priority", full, 38, 0},
		{"tag 4", frame(q, tag(4, v4), to4, tcp), 0, 0},
		{"tag 4095", frame(q, tag(4095, v4), to4, tcp), 0, 0},
		{"tag 261, 5 in its lower byte", frame(q, tag(261, v4), to4, tcp), 0, 0},
		{"two tags", twice, 0, 0},
		{"tag 5 in tag 0", inNone, 0, 0},
		{"a service tag", service, 0, 0},
		{"tag 5, ARP", arp, 0, 0},
		{"tag 5, no VIP", frame(q, tag(5, v4), ip4(other4, protoTCP), tcp), 0, 0},
	} {
		of5 = append(of5, verdictCase{c.name, c.five, c.frame})
		ofNone = append(ofNone, verdictCase{c.name, c.ofNone, c.frame})
	}
	return of5, ofNone
}

func TestVLANVerdicts(t *testing.T) {
	of5, ofNone := vlanCases(t)
	for name, c := range map[string]struct {
		vlan  uint16
		cases []verdictCase
	}{"VLAN 5": {5, of5}, "no VLAN": {0, ofNone}} {
		t.Run(name, func(t *testing.T) {
			r := newReplyRig(t, AttachOptions{Queues: 1, VLAN: c.vlan})
			checkCases(t, r, c.cases, Stats{ToVIPs: 1, NoSocket: 1})
		})
	}
}

// Replies and loops are found behind a tag as without one.
func TestVLANRepliesAndLoops(t *testing.T) {
	r := newReplyRig(t, AttachOptions{Queues: 1, VLAN: 5})
	tagged := func(cases []verdictCase) (out []verdictCase) {
		for _, c := range cases {
			if bytes.Equal(c.frame[12:14], []byte{0x81, 0}) {
				continue
			}
			c.frame = bytes.Join([][]byte{c.frame[:12], {0x81, 0, 0x20, 5}, c.frame[12:]}, nil)
			if c.taken != 0 {
				c.taken += 4
			}
			out = append(out, c)
		}
		return out
	}
	checkCases(t, r, tagged(append(replyCases(t), complaintCases(t)...)), Stats{Replies: 1, NoSocket: 1})
	checkCases(t, r, tagged(loopCases(t)), Stats{ToVIPs: 1, Loops: 1})
}

// fakeNIC has the tag offload in some state, and does with a change what it is told to.
type fakeNIC struct {
	state   ethtool.FeatureState
	readErr error
	change  func(*fakeNIC) error
}

func (n *fakeNIC) FeaturesWithState(string) (map[string]ethtool.FeatureState, error) {
	return map[string]ethtool.FeatureState{tagOffload: n.state}, n.readErr
}

func (n *fakeNIC) Change(_ string, config map[string]bool) error {
	if on, there := config[tagOffload]; len(config) != 1 || !there || on {
		return errors.New("another change than was wanted")
	}
	return n.change(n)
}

func TestTagOffload(t *testing.T) {
	on := ethtool.FeatureState{Available: true, Active: true}
	never := ethtool.FeatureState{Available: true, Active: true, NeverChanged: true}
	refuse := func(*fakeNIC) error { return unix.EPERM }
	ignore := func(*fakeNIC) error { return nil }
	obey := func(n *fakeNIC) error { n.state.Active = false; return nil }
	const cure = "ethtool -K eth0 rxvlan off"
	for name, c := range map[string]struct {
		nic fakeNIC
		err string // what the error has to say; empty: there is none
		log bool
	}{
		"off":             {fakeNIC{change: refuse}, "", false},
		"on":              {fakeNIC{state: on, change: obey}, "", true},
		"fixed":           {fakeNIC{state: ethtool.FeatureState{Active: true}, change: obey}, cure, false},
		"never changed":   {fakeNIC{state: never, change: obey}, cure, false},
		"change refused":  {fakeNIC{state: on, change: refuse}, cure, false},
		"change ignored":  {fakeNIC{state: on, change: ignore}, cure, false},
		"cannot be read":  {fakeNIC{readErr: unix.ENODEV, change: refuse}, "eth0", false},
		"no such feature": {fakeNIC{state: ethtool.FeatureState{}, change: refuse}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			err := turnTagOffloadOff(&c.nic, "eth0", slog.New(slog.NewTextHandler(&log, nil)))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if (log.Len() > 0) != c.log {
				t.Errorf("log: %s", log.String())
			}
			if err == nil && c.nic.state.Active {
				t.Error("the offload is still on")
			}
		})
	}
}

// On a real driver: the offload is off after Attach, and tagged frames from the wire are steered with their tag.
func TestAttachVLAN(t *testing.T) {
	c, s := newCable(t, 1), newSteer(t)
	if err := s.SetVIPs([]netip.Addr{vip4, vip6}); err != nil {
		t.Fatal(err)
	}
	if features, err := c.node.Features("eth0"); err != nil || !features[tagOffload] {
		t.Fatalf("%s is %v at first: %v; the test needs it on", tagOffload, features[tagOffload], err)
	}
	var log bytes.Buffer
	attach := func(vlan uint16) (l *Link, err error) {
		err = c.node.Do(func() error {
			l, err = s.Attach(c.index, "eth0", AttachOptions{Queues: 1, VLAN: vlan}, slog.New(slog.NewTextHandler(&log, nil)))
			return err
		})
		return l, err
	}
	if _, err := attach(4095); err == nil || !strings.Contains(err.Error(), "4095") {
		t.Errorf("VLAN 4095: %v", err)
	}
	l, err := attach(5)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if features, err := c.node.Features("eth0"); err != nil || features[tagOffload] {
		t.Errorf("%s is %v after Attach: %v", tagOffload, features[tagOffload], err)
	}
	if !strings.Contains(log.String(), "tag offload turned off") || !strings.Contains(log.String(), "interface=eth0") {
		t.Errorf("log: %s", log.String())
	}

	of5, _ := vlanCases(t)
	want := uint64(0)
	for _, frame := range of5 {
		if frame.taken != 0 {
			want++
		}
		if err := sendRaw(c.client, frame.frame); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if got == (Stats{ToVIPs: want, NoSocket: want}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("counted %+v, want %d to VIPs", got, want)
		}
	}
}

// sendRaw puts a frame on the wire as it is.
func sendRaw(from *testenv.Namespace, frame []byte) error {
	dev, err := from.Link("eth0")
	if err != nil {
		return err
	}
	return from.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Attrs().Index})
	})
}

// A program for frames of several buffers takes them, and is attached natively where the other is refused (see
// TestGenericFallbackForLargeMTU).
func TestFrags(t *testing.T) {
	large := build(t, ether(ownMAC, layers.EthernetTypeIPv4), ip4(vip4, protoUDP), udp, gopacket.Payload(make([]byte, 8000)))
	r := newSizedRig(t, 4, 1, AttachOptions{Queues: 1, Frags: true}, vip4)
	if verdict, _, err := r.link.objects.SluiceSteer.Test(large); err != nil || verdict != xdpDrop {
		t.Errorf("verdict %d on a frame of several buffers: %v", verdict, err)
	}
	c, s := newCable(t, 1), newSteer(t)
	if err := c.client.SetMTU("eth0", 9000); err != nil {
		t.Fatal(err)
	}
	var l *Link
	err := c.node.Do(func() (err error) {
		l, err = s.Attach(c.index, "eth0", AttachOptions{Queues: 1, Frags: true}, slog.New(slog.DiscardHandler))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Generic() {
		t.Error("attached in generic mode for an MTU of 9000")
	}
}
