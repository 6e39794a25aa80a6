package control

import (
	"encoding"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// openAPI is what of docs/openapi.yaml is compared.
type openAPI struct {
	Paths      map[string]map[string]any
	Components struct {
		Schemas map[string]struct{ Properties map[string]property }
	}
}

type property struct {
	Type  string
	Ref   string `yaml:"$ref"`
	Items *property
}

// docs/openapi.yaml has the routes of the server, and the fields of the types that go over the wire.
func TestOpenAPI(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc openAPI
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}

	methods := 0
	for _, path := range doc.Paths {
		methods += len(path)
	}
	routes := (&Server{}).routes()
	for _, r := range routes {
		if doc.Paths[r.path][strings.ToLower(r.method)] == nil {
			t.Errorf("%s %s is not in docs/openapi.yaml", r.method, r.path)
		}
	}
	if methods != len(routes) {
		t.Errorf("docs/openapi.yaml has %d routes, the server %d", methods, len(routes))
	}

	c := comparison{t, &doc, make(map[string]bool)}
	for _, v := range []any{
		Status{}, ReloadResult{}, Targets{}, HealthReport{}, HealthAnswer{}, DrainRequest{}, DrainResult{},
		MaintenanceRequest{}, HealthDetail{}, Events{}, SignalsLine{},
		FlowsReport{}, FlowReport{}, TopReport{}, VersionInfo{}, ErrorBody{},
	} {
		c.compare(reflect.TypeOf(v))
	}
	for name := range doc.Components.Schemas {
		if !c.seen[name] {
			t.Errorf("docs/openapi.yaml has a schema %s that nothing uses", name)
		}
	}
}

type comparison struct {
	t    *testing.T
	doc  *openAPI
	seen map[string]bool
}

// compare checks the schema of a struct, and those of the structs in it.
func (c *comparison) compare(typ reflect.Type) {
	name := typ.Name()
	if c.seen[name] {
		return
	}
	c.seen[name] = true
	properties := c.doc.Components.Schemas[name].Properties
	fields := jsonFields(typ)
	for field, ft := range fields {
		p, documented := properties[field]
		if want := c.property(ft); !documented || !reflect.DeepEqual(p, want) {
			c.t.Errorf("%s.%s: docs/openapi.yaml has %+v, the Go type is %+v", name, field, p, want)
		}
	}
	for field := range properties {
		if fields[field] == nil {
			c.t.Errorf("%s.%s is in docs/openapi.yaml and not in the Go type", name, field)
		}
	}
}

// property returns how a type is written in the document.
func (c *comparison) property(typ reflect.Type) property {
	switch {
	case typ.Kind() == reflect.Pointer:
		return c.property(typ.Elem())
	case typ.Implements(reflect.TypeFor[encoding.TextMarshaler]()): // times and durations
		return property{Type: "string"}
	case typ.Kind() == reflect.Slice:
		items := c.property(typ.Elem())
		return property{Type: "array", Items: &items}
	case typ.Kind() == reflect.Struct:
		c.compare(typ)
		return property{Ref: "#/components/schemas/" + typ.Name()}
	case typ.Kind() == reflect.Map:
		return property{Type: "object"}
	case typ.Kind() == reflect.String:
		return property{Type: "string"}
	case typ.Kind() == reflect.Bool:
		return property{Type: "boolean"}
	case typ.Kind() == reflect.Float64:
		return property{Type: "number"}
	}
	return property{Type: "integer"}
}

// jsonFields returns the fields that encoding/json writes for a struct.
func jsonFields(typ reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	for i := range typ.NumField() {
		if f := typ.Field(i); f.Anonymous {
			for name, ft := range jsonFields(f.Type) {
				if fields[name] == nil {
					fields[name] = ft
				}
			}
		}
	}
	for i := range typ.NumField() {
		f := typ.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); !f.Anonymous && name != "-" {
			fields[name] = f.Type // in front of one that is embedded
		}
	}
	return fields
}
