package steer

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/testenv"
)

//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-14 -target bpfel -tags linux -type tuple -cflags "-O2 -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" flowHash bpf/testing/flowhash.c

// Where the members of struct tuple are.
const (
	tupleSrc   = 0
	tupleDst   = 16
	tuplePorts = 32
	tupleProto = 36
	tupleV6    = 37
	tupleHash  = 40
	tupleSize  = 48
)

// The hash in C equals the one in Go for 2,097,152 random tuples under 32 random keys, half of them IPv6.
func TestFlowHashEqualsGo(t *testing.T) {
	testenv.RequireRoot(t)
	var objs flowHashObjects
	if err := loadFlowHashObjects(&objs, nil); err != nil {
		t.Fatal(err)
	}
	defer objs.Close()
	memory, err := objs.Tuples.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if size := binary.Size(flowHashTuple{}); size != tupleSize {
		t.Fatalf("struct tuple has %d bytes", size)
	}

	random := rand.NewChaCha8([32]byte{7})
	tuples := int(objs.Tuples.MaxEntries())
	given, hashed := make([]byte, tuples*tupleSize), make([]byte, tuples*tupleSize)
	for range 32 {
		key := packet.Key{random.Uint64(), random.Uint64()}
		if err := objs.Key.Set(flowHashFlowKey{K0: key[0], K1: key[1]}); err != nil {
			t.Fatal(err)
		}
		// Random bytes are good tuples as they are; only the family is set, and no hash is there yet.
		random.Read(given)
		for i := range tuples {
			tuple := given[i*tupleSize:][:tupleSize]
			tuple[tupleV6] = byte(i & 1)
			clear(tuple[tupleHash:])
		}
		if _, err := memory.WriteAt(given, 0); err != nil {
			t.Fatal(err)
		}
		if n, err := objs.HashAll.Run(&ebpf.RunOptions{}); err != nil || int(n) != tuples {
			t.Fatalf("hashed %d of %d tuples: %v", n, tuples, err)
		}
		if _, err := memory.ReadAt(hashed, 0); err != nil {
			t.Fatal(err)
		}
		for i := range tuples {
			want := goHash(&key, given[i*tupleSize:][:tupleSize])
			if got := binary.LittleEndian.Uint64(hashed[i*tupleSize+tupleHash:]); got != want {
				t.Fatalf("key %#x tuple %x: C hashes to %#x, Go to %#x", key, given[i*tupleSize:][:tupleHash], got, want)
			}
		}
	}
}

func goHash(key *packet.Key, tuple []byte) uint64 {
	src, dst := addrOf(tuple[tupleSrc:], tuple[tupleV6]), addrOf(tuple[tupleDst:], tuple[tupleV6])
	sport, dport := binary.BigEndian.Uint16(tuple[tuplePorts:]), binary.BigEndian.Uint16(tuple[tuplePorts+2:])
	return packet.FlowHash(key, src, dst, sport, dport, tuple[tupleProto])
}

// addrOf makes a packet.Addr of an address as it lies in a packet.
func addrOf(b []byte, v6 byte) packet.Addr {
	if v6 == 0 {
		return packet.Addr{Lo: 0xffff<<32 | uint64(binary.BigEndian.Uint32(b))}
	}
	return packet.Addr{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])}
}
