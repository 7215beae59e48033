package builtin

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"

	"criserver/pkg/wholefile"
)

// withScore is the container as one whose commands get an oom_score_adj. The library gives them what the container was made with, by
// its state file; an update may have changed it since.
func (r *Runtime) withScore(c *libcontainer.Container, id string, score *int) (*libcontainer.Container, error) {
	if had := c.Config().OomScoreAdj; score == nil || had != nil && *had == *score {
		return c, nil
	}
	if err := r.writeScore(id, *score); err != nil {
		return nil, err
	}
	return r.load(id)
}

func (r *Runtime) writeScore(id string, score int) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	var state, config map[string]json.RawMessage // all else stays as it is
	if err := readState(r.root, id, &state); err != nil {
		return err
	}
	err := json.Unmarshal(state["config"], &config)
	if err != nil {
		return fmt.Errorf("decode runtime state: %w", err)
	}
	config["oom_score_adj"] = json.RawMessage(fmt.Sprint(score))
	var data []byte
	if state["config"], err = json.Marshal(config); err == nil {
		data, err = json.Marshal(state)
	}
	if err == nil {
		err = wholefile.Write(stateFile(r.root, id), data)
	}
	if err != nil {
		return fmt.Errorf("write runtime state: %w", err)
	}
	return nil
}
