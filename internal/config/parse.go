package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load reads and checks the file at path, and what it refers to: the seed file, the files of prefixes, and the group of the
// control socket. A
// file that was read and refused is an *Error; any other error says why it could not be read. The warnings are there
// in either case.
func Load(path string) (*Config, []Warning, error) {
	d := decoder{file: path, references: true}
	return d.load()
}

// LoadFor is Load with a look at the machine that the file is for, to tell at a desk what would otherwise show in traffic: it
// refuses what cannot work there, and warns of what does not fit. If the machine has none of the file's interfaces it is
// another one, and only the warnings say so.
func LoadFor(path string, m *Machine) (*Config, []Warning, error) {
	d := decoder{file: path, references: true, machine: m}
	return d.load()
}

// Parse checks a file's content under the name that problems are to carry. It reads no other file, so that the seed
// stays zero and files of prefixes count as empty. It asks the system for the host name if the content has no node. Errors are always an *Error.
func Parse(name string, data []byte) (*Config, []Warning, error) {
	d := decoder{file: name}
	return d.parse(data)
}

// decoder collects what is wrong with one file.
type decoder struct {
	file       string
	references bool      // look at what the file refers to
	machine    *Machine  // that the file is for; nil: not known
	problems   []Problem // the first maxKept of them
	refused    int       // how many there were
	warnings   []Problem
	files      map[string]*listFile // of prefixes, by path
	prefixes   int                  // of all ACLs so far
	visited    int                  // nodes looked at, counting one again each time an alias leads to it
	most       int                  // how many of them may be
	tired      bool
}

const (
	maxAliased = 500_000 // nodes that aliases may add to what is written: bounds the work on a file whose aliases multiply
	maxKept    = 10_000  // bounds the memory for the problems of a file that is all wrong
)

// load reads the file and what it refers to.
func (d *decoder) load() (*Config, []Warning, error) {
	f, err := os.Open(d.file)
	if err != nil {
		return nil, nil, fmt.Errorf("read config: %w; give the path of a configuration file", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read config: %w; give the path of a configuration file", err)
	}
	return d.parse(data)
}

func (d *decoder) parse(data []byte) (*Config, []Warning, error) {
	c := d.document(data)
	sortProblems(d.file, d.problems)
	sortProblems(d.file, d.warnings)
	if len(d.problems) == 0 {
		return c, d.warnings, nil
	}
	if n := max(d.refused, len(d.problems)) - maxProblems; n > 0 && len(d.problems) > maxProblems {
		last := d.problems[maxProblems]
		d.problems = append(d.problems[:maxProblems], Problem{File: last.File, Line: last.Line, Column: last.Column,
			Text: fmt.Sprintf("found %d more problems from here on", n)})
	}
	return nil, d.warnings, &Error{Problems: d.problems}
}

func (d *decoder) document(data []byte) *Config {
	if len(data) > maxFileSize {
		d.whole(1, fmt.Sprintf("found a file of more than %d MiB, expected a smaller one", maxFileSize>>20))
		return nil
	}
	d.most = len(data) + maxAliased // a written node has a byte at least
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root, next yaml.Node
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		d.whole(1, "found an empty file, expected at least interfaces and services")
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}
	if err := dec.Decode(&next); err == nil {
		d.whole(next.Line, "found a second document, expected one")
		return nil
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
		return nil
	}
	top := value{d: d, node: root.Content[0], schema: "", path: ""}
	c := top.config()
	if d.tired {
		d.problems = nil
		d.whole(1, "found aliases that multiply beyond measure, expected a file that can be written out")
	}
	return c
}

// whole refuses the file for something that belongs to no field.
func (d *decoder) whole(line int, text string) {
	d.problems = append(d.problems, Problem{File: d.file, Line: line, Column: 1, Text: text})
}

var yamlLine = regexp.MustCompile(`^line (\d+): (.*)`)

// syntax refuses a file that is not YAML. The library gives the line in the text of its error, and no column.
func (d *decoder) syntax(err error) {
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	d.whole(max(line, 1), fmt.Sprintf("found something that is not YAML, expected YAML (%s)", text))
}

// value is a place in the file: a node, how to call it, and its line in the schema.
type value struct {
	d      *decoder
	node   *yaml.Node // nil when the field is missing and has no default
	path   string     // services[0].vip
	schema string     // services[].vip
}

// missing reports whether there is nothing to read. What had to be there has been refused already.
func (v value) missing() bool { return v.node == nil }

func (v value) problem(text, hint string) Problem {
	if hint != "" {
		text += " (" + hint + ")"
	}
	return Problem{File: v.d.file, Line: v.node.Line, Column: v.node.Column, Path: v.path, Text: text}
}

// refuse says that v holds something else than the schema wants.
func (v value) refuse(hint string) {
	v.refuseAs(v.describe(), v.expected(), hint)
}

func (v value) refuseAs(found, expected, hint string) {
	v.d.refused++
	if v.d.refused <= maxKept {
		v.d.problems = append(v.d.problems, v.problem("found "+found+", expected "+expected, hint))
	}
}

func (v value) warn(text string) {
	v.d.warnings = append(v.d.warnings, v.problem(text, ""))
}

// expected is what the schema wants here, in words.
func (v value) expected() string {
	return kinds[v.kind()]
}

// kind is the type that the schema wants here.
func (v value) kind() string {
	if f := fields[v.schema]; f != nil {
		return f.kind
	}
	if f := fields[strings.TrimSuffix(v.schema, "[]")]; f != nil && elements[f.kind] != "" {
		return elements[f.kind]
	}
	return "mapping" // the top, and the elements of other lists
}

// describe says what v holds, on one line of bounded length.
func (v value) describe() string {
	switch v.node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch tag := v.node.ShortTag(); tag {
	case "!!null":
		return "nothing"
	case "!!str":
		return quote(v.node.Value)
	case "!!int", "!!float", "!!bool", "!!timestamp":
		return shorten(v.node.Value)
	default:
		return "a value tagged " + shorten(tag)
	}
}

func quote(s string) string { return strconv.Quote(shorten(s)) }

func shorten(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}

// resolve follows an alias.
func (v value) resolve() value {
	v.d.visited++
	if v.d.visited > v.d.most {
		v.d.tired = true
	}
	if v.node.Kind == yaml.AliasNode {
		v.node = v.node.Alias
	}
	return v
}

// list returns the elements of a list. It refuses anything else.
func (v value) list() (elements []value, ok bool) {
	if v.missing() {
		return nil, false
	}
	if v.node.Kind != yaml.SequenceNode {
		v.refuse("")
		return nil, false
	}
	for i, n := range v.node.Content {
		if v.d.tired {
			return nil, false
		}
		e := value{d: v.d, node: n, path: fmt.Sprintf("%s[%d]", v.path, i), schema: v.schema + "[]"}
		elements = append(elements, e.resolve())
	}
	return elements, true
}

// mapping is the fields of a mapping.
type mapping struct {
	at      value
	present map[string]value
}

// mapping reads the fields of v. It refuses what is no mapping, unknown fields, fields given twice and required fields
// that are missing.
func (v value) mapping() (m mapping, ok bool) {
	if v.missing() || v.d.tired {
		return mapping{}, false
	}
	if v.node.Kind != yaml.MappingNode {
		hint := ""
		if f := fields[v.schema]; v.node.ShortTag() == "!!null" && f != nil && !f.required {
			hint = "leave the field out to get its default"
		}
		v.refuse(hint)
		return mapping{}, false
	}
	m = mapping{at: v, present: make(map[string]value)}
	lines := make(map[string]int)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := value{d: v.d, node: v.node.Content[i], path: v.path, schema: v.schema}.resolve()
		if key.node.Kind != yaml.ScalarNode || key.node.ShortTag() != "!!str" {
			hint := ""
			if key.node.ShortTag() == "!!merge" {
				hint = "merging is not supported; an alias of a whole mapping is"
			}
			key.refuseAs(key.describe(), "the name of a field", hint)
			continue
		}
		name := key.node.Value
		key.schema = join(v.schema, name)
		if fields[key.schema] == nil {
			key.unknown(v.schema, name) // under the path of the mapping: the name may hold anything
			continue
		}
		key.path = join(v.path, name)
		if line, again := lines[name]; again {
			key.refuseAs(fmt.Sprintf("the field again, after line %d", line), "it once", "")
			continue
		}
		lines[name] = key.node.Line
		m.present[name] = value{d: v.d, node: v.node.Content[i+1], path: key.path, schema: key.schema}.resolve()
	}
	for _, f := range children[v.schema] {
		name := f.name()
		if _, present := m.present[name]; f.required && !present {
			v.refuseAs("no "+name, kinds[f.kind], "")
		}
	}
	return m, true
}

// field returns a field of m, or its default from the schema at the place of the mapping, or a missing value.
func (m mapping) field(name string) value {
	if v, ok := m.present[name]; ok {
		return v
	}
	v := value{d: m.at.d, path: join(m.at.path, name), schema: join(m.at.schema, name)}
	f := fields[v.schema]
	if f == nil {
		panic("config: no such field in the schema: " + v.schema)
	}
	if m.at.node != nil && f.def != "" {
		v.node = &yaml.Node{Kind: yaml.ScalarNode, Value: f.def, Line: m.at.node.Line, Column: m.at.node.Column}
	}
	return v
}

// fieldOf is field for one of the fields that special has another default for, which it has if the service is one of those.
func (m mapping) fieldOf(name string, isSpecial bool) value {
	v := m.field(name)
	other, ok := special[v.schema]
	if !ok {
		panic("config: no special default of " + v.schema)
	}
	if _, given := m.present[name]; !given && isSpecial && !v.missing() {
		v.node.Value = other.def
	}
	return v
}

// section returns an optional mapping; one that is missing has the defaults of its fields.
func (m mapping) section(name string) mapping {
	v := m.field(name)
	if v.missing() {
		at := v
		at.node = m.at.node
		return mapping{at: at}
	}
	inner, ok := v.mapping()
	if !ok {
		// It has been refused. Its fields are missing, so that nothing more is said about them.
		return mapping{at: v.without()}
	}
	return inner
}

func (v value) without() value {
	v.node = nil
	return v
}

// unknown refuses a field that the schema lacks.
func (v value) unknown(parent, name string) {
	hint := absent[v.schema]
	var names []string
	for _, f := range children[parent] {
		names = append(names, f.name())
	}
	if near := nearest(name, names); near != "" && hint == "" {
		hint = "did you mean " + near + "?"
	}
	v.refuseAs("unknown field "+quote(name), "one of "+strings.Join(names, ", "), hint)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// lookupGroup checks that the group of the control socket exists.
func lookupGroup(group string) error {
	if _, err := strconv.ParseUint(group, 10, 32); err == nil {
		return nil
	}
	_, err := user.LookupGroup(group)
	return err
}
