package maglev

// Moved returns how many entries of a table change their backend when to takes the place of from, and the least that had
// to, whatever the way of building: what the backends of from have to give up for their shares in to. Backends are told
// apart by name.
//
// With two sizes an entry is a part of the space of hashes, and what is counted is the part that moves, in entries of to,
// rounded up. Nothing moves if from has no backend; everything does if only to has none.
func Moved(from, to *Table) (moved, least int) {
	if len(from.entries) == 0 {
		return 0, 0
	}
	if len(to.entries) == 0 {
		return to.size, to.size
	}
	index := make([]int, len(from.names)) // in to, by index in from; -1 if it is not there
	j := 0
	for i, name := range from.names {
		for j < len(to.names) && to.names[j] < name {
			j++
		}
		index[i] = -1
		if j < len(to.names) && to.names[j] == name {
			index[i] = j
		}
	}
	// The space of hashes has from.size × to.size parts: one entry of from is to.size of them, and the other way round.
	var parts, needed int
	for at, f, t := 0, 0, 0; f < from.size && t < to.size; {
		end := min((f+1)*to.size, (t+1)*from.size)
		if index[from.entries[f]] != int(to.entries[t]) {
			parts += end - at
		}
		if at = end; at == (f+1)*to.size {
			f++
		}
		if at == (t+1)*from.size {
			t++
		}
	}
	for i, j := range index {
		has, gets := from.shares[i]*to.size, 0
		if j >= 0 {
			gets = to.shares[j] * from.size
		}
		needed += max(0, has-gets)
	}
	return (parts + from.size - 1) / from.size, (needed + from.size - 1) / from.size
}
