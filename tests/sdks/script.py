"""A plain script that uses an official SDK, told by its environment alone where the model is.

Run by the Python of the SDKs: what to ask for comes in as JSON lines, what came back goes out.
"""

from __future__ import annotations

import asyncio
import json
import sys

MODEL = "scripted-1"
TOOL = {"name": "weather", "description": "The weather of a city."}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Anthropic:
    """The Messages API."""

    def __init__(self) -> None:
        import anthropic

        self.error = anthropic.APIError
        self._clients = anthropic.Anthropic(), anthropic.AsyncAnthropic()

    def request(self, prompt: str) -> dict:
        return {
            "model": MODEL,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": prompt}],
            "tools": [{**TOOL, "input_schema": CITY}],
        }

    def answer(self, prompt: str, *, streaming: bool):
        api = self._clients[0].messages
        if not streaming:
            return self.told(api.create(**self.request(prompt)))
        with api.stream(**self.request(prompt)) as stream:
            return self.told(stream.get_final_message())

    async def answer_async(self, prompt: str, *, streaming: bool):
        api = self._clients[1].messages
        if not streaming:
            return self.told(await api.create(**self.request(prompt)))
        async with api.stream(**self.request(prompt)) as stream:
            return self.told(await stream.get_final_message())

    def told(self, message) -> dict:
        text = "".join(block.text for block in message.content if block.type == "text")
        tools = [block.id for block in message.content if block.type == "tool_use"]
        return {"id": message.id, "text": text, "tools": tools}


class Chat:
    """OpenAI's Chat Completions API."""

    def __init__(self) -> None:
        import openai

        self.error = openai.APIError
        self._clients = openai.OpenAI(), openai.AsyncOpenAI()

    def request(self, prompt: str) -> dict:
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "tools": [{"type": "function", "function": {**TOOL, "parameters": CITY}}],
        }

    def answer(self, prompt: str, *, streaming: bool):
        api = self._clients[0].chat.completions
        if not streaming:
            return self.told(api.create(**self.request(prompt)))
        usage = {"stream_options": {"include_usage": True}}
        with api.stream(**self.request(prompt), **usage) as stream:
            return self.told(stream.get_final_completion())

    async def answer_async(self, prompt: str, *, streaming: bool):
        api = self._clients[1].chat.completions
        if not streaming:
            return self.told(await api.create(**self.request(prompt)))
        usage = {"stream_options": {"include_usage": True}}
        async with api.stream(**self.request(prompt), **usage) as stream:
            return self.told(await stream.get_final_completion())

    def told(self, completion) -> dict:
        message = completion.choices[0].message
        tools = [call.id for call in message.tool_calls or ()]
        return {"id": completion.id, "text": message.content or "", "tools": tools}


class Responses(Chat):
    """OpenAI's Responses API."""

    def request(self, prompt: str) -> dict:
        tool = {"type": "function", **TOOL, "parameters": CITY, "strict": False}
        return {"model": MODEL, "input": prompt, "tools": [tool]}

    def answer(self, prompt: str, *, streaming: bool):
        api = self._clients[0].responses
        if not streaming:
            return self.told(api.create(**self.request(prompt)))
        with api.create(**self.request(prompt), stream=True) as stream:
            return self.told(list(stream)[-1].response)

    async def answer_async(self, prompt: str, *, streaming: bool):
        api = self._clients[1].responses
        if not streaming:
            return self.told(await api.create(**self.request(prompt)))
        async with await api.create(**self.request(prompt), stream=True) as stream:
            return self.told([event async for event in stream][-1].response)

    def told(self, response) -> dict:
        if response.status == "failed":
            # An error in the middle of a stream is an event here, and no exception.
            return {"error": response.error.message, "status": None}
        tools = [item.call_id for item in response.output if item.type == "function_call"]
        return {"id": response.id, "text": response.output_text, "tools": tools}


class OpenAIEmbeddings(Chat):
    """OpenAI's Embeddings API, which has no streams."""

    def answer(self, prompt: str, *, streaming: bool):
        del streaming
        return self.told(self._clients[0].embeddings.create(model=MODEL, input=prompt))

    async def answer_async(self, prompt: str, *, streaming: bool):
        del streaming
        return self.told(await self._clients[1].embeddings.create(model=MODEL, input=prompt))

    def told(self, answer) -> dict:
        return {"vectors": [each.embedding for each in answer.data]}


class Gemini:
    """Google's generateContent."""

    def __init__(self) -> None:
        from google import genai
        from google.genai import errors

        self.error = errors.APIError
        self._client = genai.Client()

    def request(self, prompt: str) -> dict:
        tools = [{"function_declarations": [{**TOOL, "parameters_json_schema": CITY}]}]
        return {"model": MODEL, "contents": prompt, "config": {"tools": tools}}

    def answer(self, prompt: str, *, streaming: bool):
        api = self._client.models
        if not streaming:
            return self.told([api.generate_content(**self.request(prompt))])
        return self.told(list(api.generate_content_stream(**self.request(prompt))))

    async def answer_async(self, prompt: str, *, streaming: bool):
        api = self._client.aio.models
        if not streaming:
            return self.told([await api.generate_content(**self.request(prompt))])
        stream = await api.generate_content_stream(**self.request(prompt))
        return self.told([chunk async for chunk in stream])

    def told(self, chunks) -> dict:
        parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts or ()]
        return {
            "id": chunks[-1].response_id,
            "text": "".join(part.text or "" for part in parts if not part.thought),
            "tools": [part.function_call.id for part in parts if part.function_call],
        }


class GeminiEmbeddings(Gemini):
    """Google's embedContent, which has no streams."""

    def answer(self, prompt: str, *, streaming: bool):
        del streaming
        return self.told(self._client.models.embed_content(model=MODEL, contents=prompt))

    async def answer_async(self, prompt: str, *, streaming: bool):
        del streaming
        return self.told(await self._client.aio.models.embed_content(model=MODEL, contents=prompt))

    def told(self, answer) -> dict:
        return {"vectors": [each.values for each in answer.embeddings]}


async def main() -> None:
    api = globals()[sys.argv[1]]()
    for line in sys.stdin:
        wish = json.loads(line)
        ask = api.answer_async if wish["asynchronous"] else api.answer
        try:
            answer = ask(wish["prompt"], streaming=wish["streaming"])
            told = await answer if wish["asynchronous"] else answer
        except api.error as error:
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            told = {"error": str(error), "status": status}
        print(json.dumps(told), flush=True)  # noqa: T201  # this is how it answers


asyncio.run(main())
