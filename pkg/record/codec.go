package record

import "encoding/json"

// Codec is what records may be that have another form in the database than JSON. It is implemented by a pointer to the type.
type Codec interface {
	EncodeRecord() ([]byte, error)
	DecodeRecord(data []byte) error
}

func encode[T any](v T) ([]byte, error) {
	if c, ok := any(&v).(Codec); ok {
		return c.EncodeRecord()
	}
	return json.Marshal(v)
}

func decode[T any](data []byte, v *T) error {
	if c, ok := any(v).(Codec); ok {
		return c.DecodeRecord(data)
	}
	return json.Unmarshal(data, v)
}
