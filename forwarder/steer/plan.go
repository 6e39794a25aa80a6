package steer

import (
	"bytes"
	"cmp"
)

// keyBytes is what both tries of the access lists have in a key beside its number of bits.
const keyBytes = 20

// trieKey is a prefix as the program has it: of data, bits count, and the rest is 0.
type trieKey struct {
	Bits uint32
	Data [keyBytes]byte
}

// compare sorts a prefix before those that it contains.
func (k trieKey) compare(o trieKey) int {
	if c := bytes.Compare(k.Data[:], o.Data[:]); c != 0 {
		return c
	}
	return cmp.Compare(k.Bits, o.Bits)
}

// contains reports whether all that o matches is matched by k too.
func (k trieKey) contains(o trieKey) bool {
	whole := k.Bits / 8
	if k.Bits > o.Bits || !bytes.Equal(k.Data[:whole], o.Data[:whole]) {
		return false
	}
	rest := k.Bits % 8
	return rest == 0 || (k.Data[whole]^o.Data[whole])>>(8-rest) == 0
}

// rule is a prefix and what it says. Where none says anything, the value is 0.
type rule struct {
	trieKey
	value uint32
}

// trieValue is what an element says before and since a generation: struct acl_value of the program.
type trieValue struct {
	Since, Before, After uint32
}

// plan is what makes one set of rules another at the moment when a generation begins.
type plan struct {
	// Elements to write before that. Until the generation begins they change no answer: each says, before, what the
	// longest prefix of the old set that contains it says.
	puts   []trieKey
	values []trieValue
	// What to write instead to take the puts back, before the generation begins.
	added    []trieKey // to be removed again
	changed  []trieKey // to be what they were
	restored []trieValue
	// Elements to remove after it has begun. By then they say what the rest says without them.
	removes []trieKey
}

func (p *plan) empty() bool { return len(p.puts) == 0 && len(p.removes) == 0 }

// makePlan compares two sets of rules, each sorted and without doubles. What is in both alike is left alone.
func makePlan(old, now []rule, generation uint32) *plan {
	p := &plan{}
	var inOld, inNow enclosing
	for len(old) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(now) == 0:
			order = -1
		case len(old) == 0:
			order = 1
		default:
			order = old[0].compare(now[0].trieKey)
		}
		var key trieKey
		if order <= 0 {
			key = old[0].trieKey
			inOld.push(&old[0])
			old = old[1:]
		} else {
			inOld.leave(now[0].trieKey)
		}
		if order >= 0 {
			key = now[0].trieKey
			inNow.push(&now[0])
			now = now[1:]
		} else {
			inNow.leave(key)
		}
		before, after := inOld.says(), inNow.says()
		if order > 0 || before != after {
			p.puts = append(p.puts, key)
			p.values = append(p.values, trieValue{generation, before, after})
			if order > 0 {
				p.added = append(p.added, key)
			} else {
				p.changed = append(p.changed, key)
				p.restored = append(p.restored, trieValue{0, before, before})
			}
		}
		if order < 0 {
			p.removes = append(p.removes, key)
		}
	}
	return p
}

// enclosing is the rules of a set that contain a place in the sorted order, the longest last.
type enclosing []*rule

// leave drops the rules that do not contain k.
func (e *enclosing) leave(k trieKey) {
	for len(*e) > 0 && !(*e)[len(*e)-1].contains(k) {
		*e = (*e)[:len(*e)-1]
	}
}

func (e *enclosing) push(r *rule) {
	e.leave(r.trieKey)
	*e = append(*e, r)
}

// says is what the longest of them says.
func (e enclosing) says() uint32 {
	if len(e) == 0 {
		return 0
	}
	return e[len(e)-1].value
}
