package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong, or doubtful, in a configuration file.
type Problem struct {
	File   string `json:"file"`   // the configuration file, or a file of prefixes that it names
	Line   int    `json:"line"`   // 1-based
	Column int    `json:"column"` // 1-based, in characters; 1 when only the line is known
	Path   string `json:"path"`   // such as services[0].vip; empty when it concerns the file as a whole
	Text   string `json:"text"`   // found X, expected Y, and perhaps a hint in parentheses; one line
}

// Warning is a Problem that does not keep the file from being used.
type Warning = Problem

// String returns `file:line:column: path: text`.
func (p Problem) String() string {
	if p.Path == "" {
		return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", p.File, p.Line, p.Column, p.Path, p.Text)
}

// Error is a file that was refused. Problems is never empty and in the order of the file; those of files that it names come
// after its own.
type Error struct{ Problems []Problem }

// Error returns all problems, one a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sortProblems puts those of the configuration file first.
func sortProblems(file string, list []Problem) {
	slices.SortStableFunc(list, func(a, b Problem) int {
		if a.File != b.File && (a.File == file || b.File == file) {
			if a.File == file {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// nearest returns the word of the list that word was probably meant to be, or "".
func nearest(word string, list []string) string {
	best, bestDistance := "", 3
	for _, w := range list {
		// One edit for every three letters: short words resemble each other by chance.
		if d := distance(strings.ToLower(word), w); d < bestDistance && d <= max(1, len(w)/3) {
			best, bestDistance = w, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace, or neighbours to swap, that makes a into b.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	var before, last []int
	for i := range len(a) + 1 {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			if i == 0 {
				row[j] = j
				continue
			}
			d := last[j-1]
			if a[i-1] != b[j-1] {
				d++
			}
			d = min(d, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, before[j-2]+1)
			}
			row[j] = d
		}
		before, last = last, row
	}
	return last[len(b)]
}
