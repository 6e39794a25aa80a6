package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
)

// fileVersion is that of the JSON form. It changes with every change that would have old results misread.
const fileVersion = 1

// Report is what a run of benchmarks has measured.
type Report struct {
	Environment Environment `json:"environment"`
	Effort      Effort      `json:"effort"`
	Tables      []Table     `json:"tables"`
	// Notes say which benchmarks failed, and why.
	Notes []string `json:"notes,omitempty"`
}

// file is a report on disk.
type file struct {
	Version int `json:"version"`
	Report
}

// String returns the effort's name.
func (e Effort) String() string {
	if e == Smoke {
		return "smoke"
	}
	return "full"
}

// MarshalText returns the effort's name.
func (e Effort) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads an effort's name.
func (e *Effort) UnmarshalText(text []byte) error {
	for _, known := range []Effort{Smoke, Full} {
		if known.String() == string(text) {
			*e = known
			return nil
		}
	}
	return fmt.Errorf("effort: found %q, expected smoke or full", text)
}

// Table returns the table with this name; nil if there is none.
func (r *Report) Table(name string) *Table {
	for i := range r.Tables {
		if r.Tables[i].Name == name {
			return &r.Tables[i]
		}
	}
	return nil
}

// Validate says what of a table contradicts the promises of its types.
func (t *Table) Validate() error {
	if t.Name == "" || t.Metric == "" || t.Unit == "" {
		return fmt.Errorf("table %q has no name, no metric or no unit", t.Name)
	}
	seen := map[string]bool{}
	for i := range t.Rows {
		r := &t.Rows[i]
		key := r.Key()
		wrong := func(format string, args ...any) error {
			return fmt.Errorf("table %s, row %s: %s", t.Name, key, fmt.Sprintf(format, args...))
		}
		if key == "" {
			return fmt.Errorf("table %s, row %d: it has no labels", t.Name, i)
		}
		if seen[key] {
			return wrong("there are two of them")
		}
		seen[key] = true
		for k, l := range r.Labels {
			if len(r.Labels) != len(t.Rows[0].Labels) || l.Name != t.Rows[0].Labels[k].Name {
				return wrong("its labels have other names than those of the first row, %s", t.Rows[0].Key())
			}
		}
		if (len(r.Rounds) == 0) != (r.Missing != "") {
			return wrong("a row has either values or a reason why it has none")
		}
		if r.Reference != "" && t.Find(r.Reference) == nil {
			return wrong("it refers to row %s, which is not there", r.Reference)
		}
		for _, v := range r.Rounds {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return wrong("a value is %v", v)
			}
		}
		for name, v := range r.Extra {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return wrong("%s is %v", name, v)
			}
		}
	}
	return nil
}

// Validate says what of a report contradicts the promises of its types.
func (r *Report) Validate() error {
	for i := range r.Tables {
		if err := r.Tables[i].Validate(); err != nil {
			return err
		}
		if r.Table(r.Tables[i].Name) != &r.Tables[i] {
			return fmt.Errorf("table %s: there are two of them", r.Tables[i].Name)
		}
	}
	return nil
}

// Write writes a report as JSON.
func (r *Report) Write(w io.Writer) error {
	if err := r.Validate(); err != nil {
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(file{Version: fileVersion, Report: *r})
}

// Read reads what Write has written. It refuses other versions, and fields that it does not know: they would have a meaning.
func Read(in io.Reader) (*Report, error) {
	text, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return nil, fmt.Errorf("not a report: %w", err)
	}
	if version.Version != fileVersion {
		return nil, fmt.Errorf("version: found %d, expected %d: measure anew, or use the Sluice that wrote it",
			version.Version, fileVersion)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var f file
	if err := d.Decode(&f); err != nil {
		return nil, err
	}
	if err := f.Validate(); err != nil {
		return nil, err
	}
	return &f.Report, nil
}

// ReadFile reads a report from a file.
func ReadFile(name string) (*Report, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// WriteFiles writes report.json and report.md into a directory, which it makes if need be. Either file is replaced whole.
func (r *Report) WriteFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{{"report.json", r.Write}, {"report.md", r.Markdown}} {
		var text bytes.Buffer
		if err := f.write(&text); err != nil {
			return err
		}
		name := filepath.Join(dir, f.name)
		if err := os.WriteFile(name+".new", text.Bytes(), 0o644); err != nil {
			return err
		}
		if err := os.Rename(name+".new", name); err != nil {
			return err
		}
	}
	return nil
}
