//go:build linux

package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// segment is a TCP segment that leaves the backend, to be built, changed by the test first.
type segment struct {
	src, dst  netip.Addr
	ipOptions []byte // IPv4 options; a multiple of four bytes
	fragment  uint16 // IPv4 flags and offset
	next      byte   // IPv6 next header, or IPv4 protocol
	extension []byte // IPv6 extension headers
	flags     byte
	options   []byte // of TCP; a multiple of four bytes
	payload   []byte
}

// newSegment is a SYN-ACK of a VIP without options.
func newSegment(ipv6 bool) *segment {
	s := &segment{src: vip4, dst: client4, fragment: 0x4000, next: unix.IPPROTO_TCP, flags: 0x12}
	if ipv6 {
		s.src, s.dst = vip6, client6
	}
	return s
}

// tcpAt is where the TCP header is in the frame.
func (s *segment) tcpAt() int {
	if s.src.Is6() {
		return 14 + 40 + len(s.extension)
	}
	return 14 + 20 + len(s.ipOptions)
}

func (s *segment) frame() []byte {
	be := binary.BigEndian
	tcp := make([]byte, 20, 100)
	be.PutUint16(tcp, 80)
	be.PutUint16(tcp[2:], 50000)
	be.PutUint32(tcp[4:], 0x12345678)
	tcp[12], tcp[13] = byte(5+len(s.options)/4)<<4, s.flags
	tcp = slices.Concat(tcp, s.options, s.payload)
	be.PutUint16(tcp[16:], ^sum(s.pseudo(len(tcp)), tcp))

	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00}
	if s.src.Is6() {
		frame[12], frame[13] = 0x86, 0xdd
		frame = append(frame, 0x60, 0, 0, 0, 0, byte(len(s.extension)+len(tcp)), s.next, 64)
		return slices.Concat(frame, s.src.AsSlice(), s.dst.AsSlice(), s.extension, tcp)
	}
	ip := []byte{byte(0x45 + len(s.ipOptions)/4), 0, 0, byte(20 + len(s.ipOptions) + len(tcp)), 0, 0, byte(s.fragment >> 8), byte(s.fragment), 64, s.next, 0, 0}
	ip = slices.Concat(ip, s.src.AsSlice(), s.dst.AsSlice(), s.ipOptions)
	be.PutUint16(ip[10:], ^sum(ip))
	return slices.Concat(frame, ip, tcp)
}

// pseudo is the pseudo header of a segment of n bytes.
func (s *segment) pseudo(n int) []byte {
	return slices.Concat(s.src.AsSlice(), s.dst.AsSlice(), []byte{0, unix.IPPROTO_TCP, byte(n >> 8), byte(n)})
}

// sum is the sum in ones' complement of what is in the parts together.
func sum(parts ...[]byte) uint16 {
	total := 0
	for i, b := range slices.Concat(parts...) {
		total += int(b) << (8 * (1 - i%2))
	}
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

func unhex(s string) []byte {
	out, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return out
}

// expectClamp runs the egress program and compares.
func (p *programs) expectClamp(t *testing.T, frame, want []byte) {
	t.Helper()
	counted := Counters{Clamped: 1}
	if bytes.Equal(frame, want) {
		counted = Counters{}
	}
	v, out, c := p.runOne(t, p.objs.SluiceClamp, frame, nil)
	if v != next || !bytes.Equal(out, want) || c != counted {
		t.Errorf("verdict %#x, counted %+v, frame after:\n%x\nwant:\n%x", v, c, out, want)
	}
}

// TestClampOptions: the program finds the MSS among the options, and nothing else.
func TestClampOptions(t *testing.T) {
	d := load(t)
	nops := func(n int) string { return strings.Repeat("01", n) }
	for _, c := range []struct {
		name, options string // L in options: the limit; M: the limit + 1; B: the limit - 1
		after         string // empty: as before
	}{
		{"alone", "0204 05b4", "0204 L"},
		{"as Linux has it", "0204 05b4 0402 080a 01020304 05060708 01 0303 07", "0204 L 0402 080a 01020304 05060708 01 0303 07"},
		{"one more than the limit", "0204 M", "0204 L"},
		{"the largest", "0204 ffff", "0204 L"},
		{"the limit", "0204 L", ""},
		{"lower", "0204 B", ""},
		{"zero", "0204 0000", ""},
		{"no options", "", ""},
		{"other options", "0402 080a 01020304 05060708 01 0303 07 00", ""},
		{"after 1 NOP", "01 0204 05b4 000000", "01 0204 L 000000"},
		{"after 2 NOPs", "0101 0204 05b4 0000", "0101 0204 L 0000"},
		{"after 3 NOPs", "010101 0204 05b4 00", "010101 0204 L 00"},
		{"after 36 NOPs", nops(36) + "0204 05b4", nops(36) + "0204 L"},
		{"after 35 NOPs", nops(35) + "0204 05b4 01", nops(35) + "0204 L 01"},
		{"40 NOPs", nops(40), ""},
		{"after SACK permitted and window scale", "0402 0303 07 0204 05b4 00 00 00", "0402 0303 07 0204 L 00 00 00"},
		{"after an unknown option of 30 bytes", "fd1e" + strings.Repeat("aa", 28) + "0101 0204 05b4", "fd1e" + strings.Repeat("aa", 28) + "0101 0204 L"},
		{"the bytes of an MSS option inside of another", "fd08 0204 05b4 0000", ""},
		{"the first of two", "0204 05b4 0204 05b4", "0204 L 0204 05b4"},
		{"after the end of options", "00 0204 05b4 000000", ""},
		{"after the end of options, of which a length could be read", "0002 0204 05b4 0000", ""},
		{"of length 0", "0200 05b4 0204 05b4", ""},
		{"of length 1", "0201 05b4 0204 05b4", ""},
		{"of length 2, then one", "0202 0204 05b4 0000", "0202 0204 L 0000"},
		{"of length 3, then one", "0203 ff 0204 05b4 00", "0203 ff 0204 L 00"},
		{"of length 5", "0205 05b4 ff 000000", ""},
		{"another option of length 0 before", "0300 0204 05b4 0000", ""},
		{"another option of length 1 before", "0301 0204 05b4 0000", ""},
		{"kind alone at the end", "010101 02", ""},
		{"no value at the end", "0101 0204", ""},
		{"half a value at the end", "01 0204 05", ""},
		{"another option beyond the end", "fd09 0204 05b4 0000", ""},
	} {
		for ipv6, limit := range map[bool]uint16{false: 1412, true: 1392} {
			t.Run(fmt.Sprintf("%s/ipv6=%t", c.name, ipv6), func(t *testing.T) {
				fill := strings.NewReplacer("L", fmt.Sprintf("%04x", limit), "M", fmt.Sprintf("%04x", limit+1), "B", fmt.Sprintf("%04x", limit-1))
				s := newSegment(ipv6)
				s.payload = unhex("05b4 0204 05b4 ffff") // what must not be taken for options
				s.options = unhex(fill.Replace(c.options))
				frame := s.frame()
				if c.after != "" {
					s.options = unhex(fill.Replace(c.after))
				}
				d.expectClamp(t, frame, s.frame()) // checksum included
			})
		}
	}
}

// TestClampPackets: what is a SYN-ACK of a VIP.
func TestClampPackets(t *testing.T) {
	d := load(t)
	other4, other6 := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	in := func(s *segment, v4, v6 netip.Addr) netip.Addr {
		if s.src.Is6() {
			return v6
		}
		return v4
	}
	families := []bool{false, true}
	for _, c := range []struct {
		name    string
		ipv6    []bool
		change  func(*segment)
		patch   func([]byte) // of the finished frame
		clamped bool
	}{
		{"plain", families, func(*segment) {}, nil, true},
		{"with data", families, func(s *segment) { s.payload = make([]byte, 11) }, nil, true},
		{"with ECE", families, func(s *segment) { s.flags |= 0x40 }, nil, true},
		{"SYN", families, func(s *segment) { s.flags = 0x02 }, nil, false},
		{"ACK", families, func(s *segment) { s.flags = 0x10 }, nil, false},
		{"RST", families, func(s *segment) { s.flags = 0x14 }, nil, false},
		{"all but SYN", families, func(s *segment) { s.flags = 0xfd }, nil, false},
		{"all but ACK", families, func(s *segment) { s.flags = 0xef }, nil, false},
		{"from another address", families, func(s *segment) { s.src = in(s, other4, other6) }, nil, false},
		{"from here to a VIP", families, func(s *segment) { s.src, s.dst = in(s, here4, here6), s.src }, nil, false},
		{"IPv4 options", families[:1], func(s *segment) { s.ipOptions = unhex("94040000") }, nil, true},
		{"IPv4 options, all 40 bytes", families[:1], func(s *segment) { s.ipOptions = bytes.Repeat(unhex("94040000"), 10) }, nil, true},
		{"first fragment", families[:1], func(s *segment) { s.fragment = 0x2000 }, nil, false},
		{"later fragment", families[:1], func(s *segment) { s.fragment = 1 }, nil, false},
		{"UDP", families, func(s *segment) { s.next = 17 }, nil, false},
		{"hop-by-hop options", families[1:], func(s *segment) { s.next, s.extension = 0, unhex("0600 010400000000") }, nil, false},
		{"fragment header", families[1:], func(s *segment) { s.next, s.extension = 44, unhex("0600000000000000") }, nil, false},
		{"header length 4 words", families[:1], nil, func(f []byte) { f[14] = 0x44 }, false},
		{"version 6 in IPv4", families[:1], nil, func(f []byte) { f[14] = 0x65 }, false},
		{"version 4 in IPv6", families[1:], nil, func(f []byte) { f[14] = 0x40 }, false},
		{"TCP header of 4 words, IPv4", families[:1], nil, func(f []byte) { f[14+20+12] = 0x40 }, false},
		{"TCP header of 4 words, IPv6", families[1:], nil, func(f []byte) { f[14+40+12] = 0x40 }, false},
		{"ARP", families, nil, func(f []byte) { f[12], f[13] = 0x08, 0x06 }, false},
		{"VLAN tag", families, nil, func(f []byte) { f[12], f[13] = 0x81, 0x00 }, false},
	} {
		for _, ipv6 := range c.ipv6 {
			t.Run(fmt.Sprintf("%s/ipv6=%t", c.name, ipv6), func(t *testing.T) {
				s := newSegment(ipv6)
				s.options = unhex("0204 05b4")
				if c.change != nil {
					c.change(s)
				}
				frame := s.frame()
				if c.clamped {
					s.options = unhex(map[bool]string{false: "0204 0584", true: "0204 0570"}[ipv6])
				}
				want := s.frame()
				if c.patch != nil {
					c.patch(frame)
					c.patch(want)
				}
				d.expectClamp(t, frame, want)
			})
		}
	}

	t.Run("cut short anywhere", func(t *testing.T) {
		for _, ipv6 := range families {
			s := newSegment(ipv6)
			s.options, s.payload = unhex("01 0204 05b4 01 0303 07 01 0402"), make([]byte, 20)
			whole := s.frame()
			copy(s.options, unhex(map[bool]string{false: "01 0204 0584", true: "01 0204 0570"}[ipv6]))
			clamped := s.frame()
			for n := range whole {
				if !runnable(whole[:n]) {
					continue
				}
				want := whole[:n]
				if n >= s.tcpAt()+20+5 {
					want = clamped[:n]
				}
				d.expectClamp(t, whole[:n], want)
			}
		}
	})
	t.Run("off", func(t *testing.T) {
		if err := d.setParameters(parameters{GUEPort: DefaultGUEPort}); err != nil {
			t.Fatal(err)
		}
		for _, ipv6 := range families {
			s := newSegment(ipv6)
			s.options = unhex("0204 ffff")
			d.expectClamp(t, s.frame(), s.frame())
		}
	})
}

// FuzzClamp holds the program to what may happen at all: a packet goes on; it is as it was, or an MSS in it is lower and
// its TCP checksum is as right or wrong as before.
func FuzzClamp(f *testing.F) {
	for _, options := range []string{"020405b4", "01020405b4000000", "0204ffff0402080a0102030405060708010303070101"} {
		for _, ipv6 := range []bool{false, true} {
			s := newSegment(ipv6)
			s.options = unhex(options)
			f.Add(s.frame())
		}
	}
	d := load(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if !runnable(frame) {
			return
		}
		v, out, c := d.runOne(t, d.objs.SluiceClamp, frame, nil)
		if bytes.Equal(out, frame) && v == next && c == (Counters{}) {
			return
		}
		if v != next || c != (Counters{Clamped: 1}) || len(out) != len(frame) {
			t.Fatalf("%x became %x with verdict %#x, counted %+v", frame, out, v, c)
		}
		tcp, limit := 14+40, []byte{0x05, 0x70}
		if frame[12] == 0x08 {
			tcp, limit = 14+int(frame[14]&15)*4, []byte{0x05, 0x84}
		}
		for i := range out {
			mss := i >= tcp+22 && (bytes.Equal(out[i:min(i+2, len(out))], limit) || bytes.Equal(out[i-1:i+1], limit))
			if out[i] != frame[i] && i != tcp+16 && i != tcp+17 && !mss {
				t.Fatalf("%x became %x: byte %d", frame, out, i)
			}
		}
		if a, b := sum(frame[tcp:]), sum(out[tcp:]); a%0xffff != b%0xffff {
			t.Fatalf("%x became %x: the sum was %#x and is %#x", frame, out, a, b)
		}
	})
}

func TestClampFor(t *testing.T) {
	for _, c := range []struct {
		config, mtu int
		want        MSS
	}{
		{ClampAuto, 1500, MSS{1412, 1392}}, {ClampAuto, 9000, MSS{8912, 8892}}, {ClampAuto, 1280, MSS{1192, 1172}},
		{ClampAuto, 68, MSS{536, 536}}, {ClampAuto, 65536, MSS{65448, 65428}}, {ClampAuto, math.MaxInt32, MSS{65495, 65495}},
		{ClampOff, 1500, MSS{}}, {900, 1500, MSS{900, 900}}, {65495, 1500, MSS{65495, 65495}},
	} {
		if got := clampFor(c.config, c.mtu); got != c.want {
			t.Errorf("%d at an MTU of %d: %v, want %v", c.config, c.mtu, got, c.want)
		}
	}
}

// sendMSS connects to the VIP from the node and returns the MSS that the client was told.
func (r *rig) sendMSS(vip netip.Addr) (int, net.Conn) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := r.node.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(vip, 80).String())
	r.ok(err)
	r.t.Cleanup(func() { c.Close() })
	raw, err := c.(*net.TCPConn).SyscallConn()
	r.ok(err)
	var info *unix.TCPInfo
	var ierr error
	r.ok(raw.Control(func(fd uintptr) { info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	r.ok(ierr)
	return int(info.Snd_mss), c
}

// TestClampSeen: the client's kernel is told the lower MSS, with a checksum that is right on the wire, whether the device
// was to finish it or not.
func TestClampSeen(t *testing.T) {
	for _, offload := range []bool{true, false} {
		t.Run(fmt.Sprintf("offload=%t", offload), func(t *testing.T) {
			r := newRig(t)
			r.wrap()
			r.ok(r.backend.SetFeatures("eth0", map[string]bool{testenv.TXChecksum: offload}))
			r.ok(r.node.SetSysctl("net/ipv4/tcp_timestamps", "0")) // they would be counted off the MSS
			r.start(both...)
			r.serve(nil)
			wire := r.capture()
			before, err := r.node.Counters()
			r.ok(err)
			for _, c := range []struct {
				vip  netip.Addr
				want int
			}{{vip4, 1412}, {vip6, 1392}} {
				if got, _ := r.sendMSS(c.vip); got != c.want {
					t.Errorf("the client sends %d bytes to %s, want %d", got, c.vip, c.want)
				}
				frame := wire(c.vip)
				tcp, pseudo := frame[14+20:], slices.Clone(frame[14+12:14+20])
				if c.vip.Is6() {
					tcp, pseudo = frame[14+40:], slices.Clone(frame[14+8:14+40])
				}
				pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
				if offload { // the pseudo header's sum, for the device to go on with
					if got := binary.BigEndian.Uint16(tcp[16:]); got != sum(pseudo) {
						t.Errorf("the unfinished checksum is %#x, want %#x", got, sum(pseudo))
					}
				} else if s := sum(pseudo, tcp); s != 0xffff {
					t.Errorf("the checksum is wrong: sum %#x of %x", s, frame)
				}
			}
			after, err := r.node.Counters()
			r.ok(err)
			if n := after["TcpInCsumErrors"] - before["TcpInCsumErrors"]; n > 0 {
				t.Errorf("%d segments had wrong checksums", n)
			}
			if n := r.status().Packets.Clamped; n != 2 {
				t.Errorf("%d SYN-ACKs were clamped, want 2", n)
			}
		})
	}
}

// capture listens on the node's cable; what it returns waits for the SYN-ACK of a VIP.
func (r *rig) capture() func(vip netip.Addr) []byte {
	r.t.Helper()
	var fd int
	r.ok(r.node.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300) // ETH_P_ALL, network order
		return err
	}))
	r.t.Cleanup(func() { unix.Close(fd) })
	r.ok(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	return func(vip netip.Addr) []byte {
		r.t.Helper()
		source, flags := 14+12, 14+20+13
		if vip.Is6() {
			source, flags = 14+8, 14+40+13
		}
		for {
			buf := make([]byte, 2048)
			n, _, err := unix.Recvfrom(fd, buf, 0)
			r.ok(err)
			if buf = buf[:n]; n > flags && bytes.HasPrefix(buf[source:], vip.AsSlice()) && buf[flags] == 0x12 {
				return buf
			}
		}
	}
}

// TestClampGiven: the MSS can be given, and clamping can be off; then large segments do not fit, also not later.
func TestClampGiven(t *testing.T) {
	r := newRig(t)
	r.wrap()
	r.ok(r.node.SetSysctl("net/ipv4/tcp_timestamps", "0"))
	before := r.snapshot()
	p := r.start(append(both, "--clamp-mss", "900")...)
	r.serve(nil)
	for _, vip := range []netip.Addr{vip4, vip6} {
		if got, _ := r.sendMSS(vip); got != 900 {
			t.Errorf("the client sends %d bytes to %s, want 900", got, vip)
		}
	}

	// The clamp outlives a killed agent, and goes with the next if that is not to clamp.
	r.ok(p.Kill())
	<-p.Done()
	if got, _ := r.sendMSS(vip4); got != 900 {
		t.Errorf("after the kill the client sends %d bytes, want 900", got)
	}
	if st := r.status(); st.ClampMSS != (MSS{900, 900}) || st.GUEPort != DefaultGUEPort || st.Packets.Clamped != 3 {
		t.Errorf("status after the kill: %+v", st)
	}
	p = r.start(append(both, "--clamp-mss", "off", "--gue-port", "0")...)
	eth0, err := r.backend.Link("eth0")
	r.ok(err)
	r.ok(r.backend.Do(func() error {
		ids, err := attached(hostLink{"eth0", eth0.Attrs().Index}, ebpf.AttachTCXEgress)
		if len(ids) != 0 {
			t.Errorf("programs at the egress: %v", ids)
		}
		return err
	}))
	got, c := r.sendMSS(vip4)
	if got != 1460 {
		t.Errorf("the client sends %d bytes, want 1460", got)
	}
	if st := r.status(); st.ClampMSS != (MSS{}) || st.GUEPort != 0 || !slices.Equal(st.Interfaces, []string{"eth0"}) {
		t.Errorf("status without clamping: %+v", st)
	}
	r.gue.Store(true) // 28 bytes more
	_, err = c.Write(make([]byte, 10*1460))
	r.ok(err)
	r.eventually("a packet does not fit: without this TestTraffic shows nothing", func() bool { return r.tooLong.Load() > 0 })
	r.stop(p, unix.SIGTERM)
	r.unchanged(before)
}

// TestClampFollowsMTU: the smallest MTU of the interfaces counts, as it is now.
func TestClampFollowsMTU(t *testing.T) {
	r := newRig(t)
	r.cable("eth1")
	r.start(append(both, "--interface", "eth1")...)
	is := func(ipv4, ipv6 uint16) func() bool {
		return func() bool { return r.status().ClampMSS == MSS{ipv4, ipv6} }
	}
	if !is(1412, 1392)() {
		t.Errorf("status is %+v", r.status())
	}
	r.ok(r.backend.SetMTU("eth1", 1400))
	r.eventually("the clamp is lowered", is(1312, 1292))
	r.ok(r.backend.SetMTU("eth1", 9000))
	r.eventually("the clamp is that of eth0", is(1412, 1392))
	r.ok(r.backend.SetMTU("eth0", 9000))
	r.eventually("the clamp is raised", is(8912, 8892))
}
