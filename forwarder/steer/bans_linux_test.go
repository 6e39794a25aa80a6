package steer

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// monotonic is what the program has for a clock, in ns.
func monotonic(t testing.TB) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano()
}

const hour = int64(3600e9)

func (r *rig) ban(t *testing.T, addr string, until int64) {
	t.Helper()
	if err := r.Ban(netip.MustParseAddr(addr), until); err != nil {
		t.Fatal(err)
	}
}

// banned reports whether a packet to a VIP dies because its source is banned.
func (r *rig) banned(t *testing.T, src string) bool {
	t.Helper()
	vip := vip4
	if netip.MustParseAddr(src).Is6() {
		vip = vip6
	}
	return r.dies(t, sent(t, src, vip.String(), protoUDP, 1, 53), func(s *Stats) *uint64 { return &s.Banned })
}

func (r *rig) checkBanned(t *testing.T, want bool, sources ...string) {
	t.Helper()
	for _, s := range sources {
		if got := r.banned(t, s); got != want {
			t.Errorf("%s is banned: %v, want %v", s, got, want)
		}
	}
}

func TestBans(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	now := monotonic(t)
	r.checkBanned(t, false, "198.51.100.7", "2001:db8:1:2::7")
	if r.watched.Refusals != 0 {
		t.Error("programs look for bans, of which there are none")
	}
	r.ban(t, "198.51.100.7", now+hour)
	r.ban(t, "2001:db8:1:2::7", now+hour)
	r.checkBanned(t, true, "198.51.100.7", "2001:db8:1:2::7", "2001:db8:1:2:ffff::1")
	r.checkBanned(t, false, "198.51.100.6", "2001:db8:1:3::7")

	// One that has ended drops nothing, though it is still there.
	r.ban(t, "198.51.100.8", now-1e9)
	r.checkBanned(t, false, "198.51.100.8")
	r.ban(t, "198.51.100.8", now+hour)
	r.ban(t, "198.51.100.8", now) // the later one counts
	r.checkBanned(t, true, "198.51.100.8")

	// Every kind of packet to a VIP, and only those.
	frame := sent(t, "198.51.100.7", other4.String(), protoUDP, 1, 53)
	if got := r.run(t, frame); got != xdpPass {
		t.Errorf("from a banned source, to no VIP: verdict %d", got)
	}
	for _, proto := range []layers.IPProtocol{protoTCP, layers.IPProtocolICMPv4, layers.IPProtocolGRE} {
		if got := r.run(t, sent(t, "198.51.100.7", vip4.String(), proto, 1, 53)); got != xdpDrop {
			t.Errorf("from a banned source, protocol %d: verdict %d", proto, got)
		}
	}

	if left, err := r.ExpireBans(now + hour - 1); left != 3 || err != nil {
		t.Errorf("%d bans left, want 3: %v", left, err)
	}
	if err := r.Unban(netip.MustParseAddr("198.51.100.7")); err != nil {
		t.Error(err)
	}
	if err := r.Unban(netip.MustParseAddr("198.51.100.99")); err != nil {
		t.Error("there was none:", err)
	}
	r.checkBanned(t, false, "198.51.100.7")
	r.checkBanned(t, true, "198.51.100.8", "2001:db8:1:2::8")
	if left, err := r.ExpireBans(now + hour); left != 0 || err != nil {
		t.Errorf("%d bans left, want none: %v", left, err)
	}
	r.checkBanned(t, false, "198.51.100.8", "2001:db8:1:2::8")
	checkNoBans(t, r.Steer)
}

func checkNoBans(t *testing.T, s *Steer) {
	t.Helper()
	var key steerAddress
	if err := s.maps[steerMapBans].NextKey(nil, &key); err == nil {
		t.Errorf("the kernel still holds %+v", key)
	}
	if s.watched.Refusals != 0 {
		t.Errorf("programs still look for %b", s.watched.Refusals)
	}
}

// A ban goes before the lists, and neither needs the other.
func TestBanBesideACL(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	r.ban(t, "198.51.100.7", monotonic(t)+hour)
	setACL(t, r.Steer, &ACL{Global: join(allow("198.51.100.7/32"), deny("198.51.100.0/24"))})
	r.checkBanned(t, true, "198.51.100.7")
	if !r.denied(t, sent(t, "198.51.100.8", vip4.String(), protoUDP, 1, 53)) {
		t.Error("not denied")
	}
	if err := r.Unban(netip.MustParseAddr("198.51.100.7")); err != nil {
		t.Fatal(err)
	}
	r.checkBanned(t, false, "198.51.100.7")
	if !r.denied(t, sent(t, "198.51.100.8", vip4.String(), protoUDP, 1, 53)) {
		t.Error("not denied, without bans")
	}
	r.ban(t, "198.51.100.7", monotonic(t)+hour)
	setACL(t, r.Steer, nil)
	r.checkBanned(t, true, "198.51.100.7")
	r.checkBanned(t, false, "198.51.100.8")
}

func TestBanBits(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	for _, c := range []struct {
		bits4, bits6  int
		same, another []string
	}{
		{24, 48, []string{"198.51.100.255", "2001:db8:1:ffff::"}, []string{"198.51.101.7", "2001:db8:2:2::7"}},
		{1, 1, []string{"255.0.0.1", "::7"}, []string{"127.0.0.2", "8000::1"}},
		{9, 57, []string{"198.0.0.1", "2001:db8:1:7f::"}, []string{"198.128.0.1", "2001:db8:1:80::"}},
		{32, 128, nil, []string{"198.51.100.6", "2001:db8:1:2::6"}},
		{32, 64, []string{"2001:db8:1:2:ffff::"}, []string{"198.51.100.6", "2001:db8:1:3::"}},
	} {
		if err := r.SetBanBits(c.bits4, c.bits6); err != nil {
			t.Fatal(err)
		}
		r.checkBanned(t, false, "198.51.100.7", "2001:db8:1:2::7") // a change has ended them
		checkNoBans(t, r.Steer)
		r.ban(t, "198.51.100.7", monotonic(t)+hour)
		r.ban(t, "2001:db8:1:2::7", monotonic(t)+hour)
		if err := r.SetBanBits(c.bits4, c.bits6); err != nil { // no change
			t.Fatal(err)
		}
		r.checkBanned(t, true, append(c.same, "198.51.100.7", "2001:db8:1:2::7")...)
		r.checkBanned(t, false, c.another...)
	}
	for _, bad := range [][2]int{{0, 64}, {33, 64}, {32, 0}, {32, 129}} {
		if err := r.SetBanBits(bad[0], bad[1]); err == nil {
			t.Errorf("%v: taken", bad)
		}
	}
	r.checkBanned(t, true, "198.51.100.7")
}

// There is room for so many and no more; what has ended makes room again.
func TestBansAreBounded(t *testing.T) {
	testenv.RequireRoot(t)
	s, err := New(1, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	addr := func(i int) netip.Addr {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(i)*2654435761)
		return netip.AddrFrom4(b)
	}
	for i := range MaxBans {
		if err := s.Ban(addr(i), int64(1+i)); err != nil {
			t.Fatalf("ban %d: %v", i, err)
		}
	}
	if err := s.Ban(addr(MaxBans), hour); !errors.Is(err, ErrTooManyBans) {
		t.Errorf("one more: %v", err)
	}
	if err := s.Ban(addr(5), hour); err != nil {
		t.Errorf("a longer one of those: %v", err)
	}
	if left, err := s.ExpireBans(100); left != MaxBans-99 || err != nil {
		t.Errorf("%d left, want %d: %v", left, MaxBans-99, err)
	}
	for i := range 99 {
		if err := s.Ban(addr(MaxBans+1+i), hour); err != nil {
			t.Fatalf("ban %d again: %v", i, err)
		}
	}
	if left, err := s.ExpireBans(hour); left != 0 || err != nil {
		t.Errorf("%d left, want none: %v", left, err)
	}
	checkNoBans(t, s)
	for _, bad := range []netip.Addr{{}, netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fe80::1%eth0")} {
		if s.Ban(bad, hour) == nil || s.Unban(bad) == nil {
			t.Errorf("%q: taken", bad)
		}
	}
}
