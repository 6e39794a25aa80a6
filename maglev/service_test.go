package maglev

import "testing"

// change is a service whose last of ten backends was replaced: backends 0 to 8 in the slots of these numbers are in both
// pools, 9 is in the one from before and drains, 10 is in the one now.
func change(t testing.TB, before, now Scheduler) (*Service, *Slots) {
	list := backends(11)
	slots := map[string]uint32{}
	for i, b := range list {
		slots[b.Name] = uint32(i)
	}
	pool := func(list []Backend, scheduler Scheduler) *Pool {
		table := mustBuild(t, list, DefaultSize)
		var s []uint32
		for _, name := range table.Names() {
			s = append(s, slots[name])
		}
		return NewPool(table, s, scheduler, 1)
	}
	s := newSlots(11)
	set(s, 9, MakeAdmit(Draining, 0))
	return &Service{
		Pool: pool(append(list[:9:9], list[10]), now),
		Past: []Past{{pool(list[:10], before), 1000}},
	}, s
}

func TestServicePrevious(t *testing.T) {
	v, s := change(t, Maglev, Maglev)
	moved := 0
	for _, h := range hashes(20000) {
		old, now := primary(v.Past[0].Pool, h), primary(v.Pool, h)
		if old != now {
			moved++
		}
		if slot, ok := v.New(testKey, h, s, 0, 0); !ok || slot != now {
			t.Fatalf("a SYN goes to %d, %v, not by the table now, to %d", slot, ok, now)
		}
		for _, c := range []struct {
			at               int64
			packet, datagram uint32
		}{{0, old, old}, {999, old, old}, {1000, now, now}} {
			if c.datagram == 9 { // it drains: packets of flows it has, but no datagram
				c.datagram = now
			}
			if slot, ok := v.Existing(testKey, h, s, c.at); !ok || slot != c.packet {
				t.Fatalf("at %d a packet goes to %d, %v, want %d", c.at, slot, ok, c.packet)
			}
			if slot, ok := v.Datagram(testKey, h, s, 0, c.at); !ok || slot != c.datagram {
				t.Fatalf("at %d a datagram goes to %d, %v, want %d", c.at, slot, ok, c.datagram)
			}
		}
	}
	if moved < 1500 {
		t.Errorf("only %d flows have another first candidate: the test shows little", moved)
	}
	v.Past = nil
	for _, h := range hashes(1000) {
		a, _ := v.Existing(testKey, h, s, 0)
		b, _ := v.Datagram(testKey, h, s, 0, 0)
		if want := primary(v.Pool, h); a != want || b != want {
			t.Fatalf("without a pool from before, %d and %d, want %d", a, b, want)
		}
	}
}

// A pool from before whose backends are all gone does not keep packets from the backends now.
func TestServicePreviousGone(t *testing.T) {
	v, s := change(t, Maglev, Maglev)
	for _, state := range []AdmitState{Down, Cut} {
		for slot := range uint32(10) {
			set(s, slot, MakeAdmit(state, 0))
		}
		for _, h := range hashes(1000) {
			a, ok1 := v.Existing(testKey, h, s, 0)
			b, ok2 := v.Datagram(testKey, h, s, 0, 0)
			if !ok1 || !ok2 || a != 10 || b != 10 {
				t.Fatalf("%v: a packet goes to %d, %v, a datagram to %d, %v; only 10 is up", state, a, ok1, b, ok2)
			}
		}
	}
}

// When nearly all backends are replaced, the few that stay get no more datagrams than they had.
func TestServiceFewStay(t *testing.T) {
	v, s := change(t, Maglev, Maglev)
	for slot := range uint32(9) {
		set(s, slot, MakeAdmit(Draining, 0))
	}
	set(s, 0, MakeAdmit(Up, All))
	list := append(backends(1), Backend{"new-1", 1}, Backend{"new-2", 1}, Backend{"new-3", 1}, Backend{"new-4", 1})
	for i := range list {
		list[i].Weight = 1
	}
	all := newSlots(20)
	for slot := range s.Admit {
		set(all, uint32(slot), Admit(s.Admit[slot].Load()))
	}
	v.Pool = NewPool(mustBuild(t, list, DefaultSize), []uint32{11, 12, 13, 14, 0}, Maglev, 1) // web-1 is the last by name
	got := 0
	for _, h := range hashes(10000) {
		if slot, _ := v.Datagram(testKey, h, all, 0, 0); slot == 0 {
			got++
		}
	}
	if got > 3100 { // a tenth as before, and a fifth of the rest
		t.Errorf("the one backend that stays gets %d of 10000 datagrams", got)
	}
}

// A fraction keeps datagrams away as it does SYNs; and if a scheduler goes by local loads, nobody can know what was
// chosen before, so the scheduler now decides.
func TestServiceDatagram(t *testing.T) {
	v, s := change(t, Source, Maglev)
	set(s, 3, MakeAdmit(Up, All/2))
	for _, h := range hashes(5000) {
		want, _ := v.New(testKey, h, s, 0, 0)
		if primary(v.Past[0].Pool, h) == 3 && Mix(testKey, h, 0)&0xffff < All/2 {
			want = 3
		}
		if slot, ok := v.Datagram(testKey, h, s, 0, 0); primary(v.Past[0].Pool, h) == 3 && (!ok || slot != want) {
			t.Fatalf("a datagram of a backend that starts slowly goes to %d, %v, want %d", slot, ok, want)
		}
	}
	setAll(v.Pool, s, MakeAdmit(Up, 0))
	setAll(v.Past[0].Pool, s, MakeAdmit(Up, 0))
	set(s, 10, MakeAdmit(Up, 1))
	for _, h := range hashes(1000) {
		if slot, ok := v.Datagram(testKey, h, s, 0, 0); !ok || slot != 10 {
			t.Fatalf("a datagram goes to %d, %v, which takes a fraction of 0", slot, ok)
		}
	}
	for _, c := range []struct{ before, now Scheduler }{{WRR, Maglev}, {Maglev, WRR}, {P2C, P2C}} {
		v, s := change(t, c.before, c.now)
		fresh, _ := change(t, c.before, c.now)
		for _, h := range hashes(1000) {
			want, _ := fresh.New(testKey, h, s, 0, 0)
			if slot, ok := v.Datagram(testKey, h, s, 0, 0); !ok || slot != want {
				t.Fatalf("%v, then %v: a datagram goes to %d, %v, want %d", c.before, c.now, slot, ok, want)
			}
		}
	}
}

// Of several changes in a while, packets without a word go by the pool that was in force before the first of them that is
// not over, whatever was in between; each is remembered for its time and no longer.
func TestServiceSeveralChanges(t *testing.T) {
	const keep = 60
	var pools []*Pool
	for n := range 20 {
		list := backends(5 + n%7)
		slots := make([]uint32, len(list))
		for i := range slots {
			slots[i] = uint32(i)
		}
		pools = append(pools, NewPool(mustBuild(t, list, 251), slots, Maglev, 1))
	}
	s := newSlots(16)
	type change struct {
		at   int64
		pool *Pool // before it
	}
	for _, gaps := range [][]int64{{100, 100, 100}, {10, 10, 10, 10}, {59, 59, 59}, {60, 60}, {0, 0, 70}, {20, 50, 30, 5, 61}} {
		v := Service{Pool: pools[0]}
		var changes []change
		now := int64(1000)
		for i, gap := range gaps {
			changes = append(changes, change{now, v.Pool})
			v = v.Next(pools[i+1], now, now+keep)
			for end := now + gap; now < end; now++ {
				want := v.Pool
				for _, c := range changes {
					if now < c.at+keep {
						want = c.pool
						break
					}
				}
				for _, h := range hashes(20) {
					a, _ := v.Existing(testKey, h, s, now)
					b, _ := want.Existing(testKey, h, s)
					if a != b {
						t.Fatalf("gaps %v, at %d: a packet goes to %d, want %d", gaps, now, a, b)
					}
				}
			}
		}
	}
	// However many there are, few are kept: the oldest and the newest.
	v := Service{Pool: pools[0]}
	for i := range 19 {
		v = v.Next(pools[i+1], int64(i), int64(i)+keep)
	}
	if len(v.Past) != maxPast || v.Past[0].Pool != pools[0] || v.Past[maxPast-1].Pool != pools[18] {
		t.Errorf("%d pools are kept", len(v.Past))
	}
}

// What Settle finds is what each of the others does, and it finds something wherever they find nothing in the way.
func TestServiceSettle(t *testing.T) {
	for _, scheduler := range []Scheduler{Maglev, WRR, LeastConn, P2C, Source} {
		v, s := change(t, scheduler, scheduler)
		set(s, 0, MakeAdmit(Draining, 0))
		set(s, 1, MakeAdmit(Down, All))
		set(s, 2, MakeAdmit(Cut, All))
		set(s, 3, MakeAdmit(Up, All/2))
		list := hashes(2000)
		slots, settled := make([]uint32, len(list)), 0
		v.Settle(testKey, list, s, 999, slots)
		for _, slot := range slots {
			if slot != NoSlot {
				t.Fatalf("%v: settled on %d while a pool from before matters", scheduler, slot)
			}
		}
		v.Settle(testKey, list, s, 1000, slots)
		for i, h := range list {
			slot := slots[i]
			if slot == NoSlot {
				continue
			}
			settled++
			a, ok1 := v.New(testKey, h, s, 0, 1000)
			b, ok2 := v.Existing(testKey, h, s, 1000)
			c, ok3 := v.Datagram(testKey, h, s, 0, 1000)
			if !ok1 || !ok2 || !ok3 || a != slot || b != slot || c != slot {
				t.Fatalf("%v: settled on %d, yet a SYN goes to %d, another packet to %d, a datagram to %d", scheduler, slot, a, b, c)
			}
		}
		if least := 2000 * 6 / 10; scheduler.Agrees() && settled < least || !scheduler.Agrees() && settled > 0 {
			t.Errorf("%v: %d of 2000 flows are settled, want %d or more if nodes agree, else none", scheduler, settled, least)
		}
	}
	v, s := change(t, Maglev, Maglev)
	v.Past, v.Pool = nil, NewPool(mustBuild(t, nil, DefaultSize), nil, Maglev, 1)
	slots := []uint32{0}
	if v.Settle(testKey, []uint64{1}, s, 0, slots); slots[0] != NoSlot {
		t.Errorf("settled on %d of no backends", slots[0])
	}
}
