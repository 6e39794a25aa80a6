package steer

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// smallKey is a prefix of a number of 16 bits, so that random ones contain each other often.
func smallKey(n uint16, bits uint32) trieKey {
	k := trieKey{Bits: bits}
	binary.BigEndian.PutUint16(k.Data[:], n&^uint16(1<<(16-bits)-1))
	return k
}

// asRules sorts what a map has.
func asRules(set map[trieKey]uint32) (rules []rule) {
	for k, v := range set {
		rules = append(rules, rule{k, v})
	}
	slices.SortFunc(rules, func(a, b rule) int { return a.compare(b.trieKey) })
	return rules
}

// longest is the longest prefix of a set that contains k.
func longest[V any](set map[trieKey]V, k trieKey) (v V, found bool) {
	best := -1
	for p, value := range set {
		if p.contains(k) && int(p.Bits) > best {
			best, v, found = int(p.Bits), value, true
		}
	}
	return v, found
}

// checkPlan goes from one set to another step by step, in an order of its own, and asks about some addresses after each:
// they never say anything but what the old set says before the generation begins, and the new one from then on.
func checkPlan(t *testing.T, old, now map[trieKey]uint32, random *rand.Rand) {
	t.Helper()
	const next = 7
	p := makePlan(asRules(old), asRules(now), next)
	kernel := make(map[trieKey]trieValue)
	for k, v := range old {
		kernel[k] = trieValue{3, 1 - v, v} // what it said long ago is of no interest
	}
	var addresses []trieKey
	for _, set := range []map[trieKey]uint32{old, now} {
		for k := range set {
			addresses = append(addresses, smallKey(binary.BigEndian.Uint16(k.Data[:])+uint16(random.IntN(3)), 16))
		}
	}
	check := func(when string, set map[trieKey]uint32, generation uint32) {
		t.Helper()
		for _, a := range addresses {
			said := uint32(0)
			if v, found := longest(kernel, a); found {
				if said = v.After; v.Since == generation+1 {
					said = v.Before
				}
			}
			if want, _ := longest(set, a); said != want {
				t.Fatalf("%s: %x: %d, want %d\nold %v\nnew %v", when, a.Data[:2], said, want, old, now)
			}
		}
	}
	step := func(n int) bool { return n < 4 || random.IntN(n) < 4 }
	for _, i := range random.Perm(len(p.puts)) {
		kernel[p.puts[i]] = p.values[i]
		if step(len(p.puts)) {
			check("put", old, next-1)
		}
	}
	check("before", old, next-1)
	check("after", now, next)
	for _, i := range random.Perm(len(p.removes)) {
		delete(kernel, p.removes[i])
		if step(len(p.removes)) {
			check("remove", now, next)
		}
	}
	if len(kernel) != len(now) {
		t.Fatalf("%d elements are left of %d", len(kernel), len(now))
	}
	check("removed", now, next)
	check("later", now, next+1)

	for _, k := range p.puts {
		if was, stays := old[k]; stays {
			if is, stays := now[k]; stays && was == is {
				t.Fatalf("%v stays as it is, and was written", k)
			}
		}
	}
	// Taken back, all is as it was.
	clear(kernel)
	for k, v := range old {
		kernel[k] = trieValue{3, v, v}
	}
	for i := range p.puts {
		kernel[p.puts[i]] = p.values[i]
	}
	for _, k := range p.added {
		delete(kernel, k)
	}
	for i, k := range p.changed {
		kernel[k] = p.restored[i]
	}
	if len(kernel) != len(old) {
		t.Fatalf("%d elements after undoing, %d before", len(kernel), len(old))
	}
	check("undone", old, next-1)
	check("undone, later", old, next)
}

func TestPlan(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	for range 2000 {
		old, now := make(map[trieKey]uint32), make(map[trieKey]uint32)
		for range random.IntN(30) {
			k, v := smallKey(uint16(random.IntN(64))<<10, uint32(random.IntN(9))), uint32(random.IntN(3))
			switch random.IntN(4) {
			case 0:
				old[k] = v
			case 1:
				now[k] = v
			case 2:
				old[k], now[k] = v, v
			case 3:
				old[k], now[k] = v, uint32(random.IntN(3))
			}
		}
		checkPlan(t, old, now, random)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte{0, 0, 8, 1, 2, 0, 16, 0}, uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		old, now := make(map[trieKey]uint32), make(map[trieKey]uint32)
		for ; len(b) >= 4 && len(old)+len(now) < 200; b = b[4:] {
			k := smallKey(binary.BigEndian.Uint16(b), uint32(b[2]%17))
			if b[3]&1 == 0 {
				old[k] = uint32(b[3] >> 4 & 3)
			}
			if b[3]&2 == 0 {
				now[k] = uint32(b[3] >> 6)
			}
		}
		checkPlan(t, old, now, rand.New(rand.NewPCG(seed, 1)))
	})
}

func TestContains(t *testing.T) {
	for _, c := range []struct {
		outer, inner trieKey
		want         bool
	}{
		{smallKey(0, 0), smallKey(0xffff, 16), true},
		{smallKey(0, 0), smallKey(0, 0), true},
		{smallKey(0xab00, 8), smallKey(0xabcd, 16), true},
		{smallKey(0xab00, 8), smallKey(0xac00, 16), false},
		{smallKey(0xab80, 9), smallKey(0xab80, 16), true},
		{smallKey(0xab80, 9), smallKey(0xab7f, 16), false},
		{smallKey(0xabcd, 16), smallKey(0xabcd, 16), true},
		{smallKey(0xabcd, 16), smallKey(0xab00, 8), false},
		{smallKey(0xabcc, 15), smallKey(0xabcd, 16), true},
		{smallKey(0xabcc, 15), smallKey(0xabce, 16), false},
	} {
		if got := c.outer.contains(c.inner); got != c.want {
			t.Errorf("%x/%d contains %x/%d: %v", c.outer.Data[:2], c.outer.Bits, c.inner.Data[:2], c.inner.Bits, got)
		}
	}
}
